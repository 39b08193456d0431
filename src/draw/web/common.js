/* What the parts of the page share: elements, and words to the user. */

export const $ = (id) => document.getElementById(id);

export function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

let quiet = 0;

/** Tells everyone, for as long as it takes to read it. */
export function say(message) {
  $("status").textContent = message;
  clearTimeout(quiet);
  quiet = setTimeout(() => ($("status").textContent = ""), 6000);
}

/** A window as a thin line, where its border would hide what matters. */
export const thin = ({ box, colour }) => ({ box: { ...box, sigma: 0 }, colour });
