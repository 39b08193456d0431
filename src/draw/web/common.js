/* What the parts of the page share: elements, and words to the user. */

export const $ = (id) => document.getElementById(id);

export function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

/** Tells screen readers. */
export const say = (message) => ($("status").textContent = message);

/** A window as a thin line, where its border would hide what matters. */
export const thin = ({ box, colour }) => ({ box: { ...box, sigma: 0 }, colour });
