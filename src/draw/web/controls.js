/* The controls of the tab Watch: they change the state and show it. */
import { COUNTS, SEEDS, SPEEDS, latentChoices, toHash } from "./state.js";
import { $, say } from "./common.js";

/** Wires the controls to the state; returns `show`, which shows it, and what the keys need. */
export function controls(page, watch) {
  const { state, limits, about, size, write_n, remember } = page;
  const options = (id, values) => $(id).replaceChildren(...values.map((value) => new Option(value, value)));
  options("n", COUNTS);
  options("speed", SPEEDS);
  const choices = latentChoices(limits.latents), words = { all: `all ${size.z_size}`, none: "none, all at their mean" };
  $("latents").replaceChildren(...choices.map((choice) => new Option(words[choice] ?? `only number ${choice}`, choice)));
  $("windows-field").hidden = write_n === null;
  $("pixels-field").hidden = !about.binary;

  function show() {
    $("seed").value = state.seed;
    $("n").value = state.n;
    $("speed").value = state.speed;
    $("latents").value = state.latents;
    $("temperature").value = state.temperature;
    $("temperature-value").textContent = state.temperature.toFixed(2);
    document.querySelector(`[name="pixels"][value="${state.pixels}"]`).checked = true;
    $("windows").checked = state.windows;
  }

  /** Changes the state; `restart` draws anew from the start, `redraw` draws anew and stays at the glimpse. */
  function change(values, { restart = false, redraw = false } = {}) {
    Object.assign(state, values);
    if (state.open !== null && state.open >= state.n) state.open = null;
    show();
    remember();
    const { settled, playing, t } = watch.player;
    if (restart) watch.begin(null);
    else if (redraw) watch.begin(playing ? null : t);
    else watch.player.update();
    if (redraw && settled) watch.player.settle();
  }

  const newSeed = () => change({ seed: crypto.getRandomValues(new Uint32Array(1))[0] }, { restart: true });
  const again = () => change({}, { restart: true });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("new-seed").addEventListener("click", newSeed);
  $("same-seed").addEventListener("click", again);
  $("seed").addEventListener("change", () => {
    const seed = Number($("seed").value);
    if (Number.isInteger(seed) && seed >= 0 && seed < SEEDS && $("seed").value !== "") change({ seed }, { restart: true });
    else {
      say(`A seed is a whole number from 0 to ${SEEDS - 1}.`);
      show();
    }
  });
  $("n").addEventListener("change", () => change({ n: Number($("n").value) }, { redraw: true }));
  $("speed").addEventListener("change", () => change({ speed: Number($("speed").value) }));
  $("temperature").addEventListener("input", () => change({ temperature: Number($("temperature").value) }, { redraw: true }));
  $("latents").addEventListener("change", () => change({ latents: choices[$("latents").selectedIndex] }, { redraw: true }));
  for (const radio of document.getElementsByName("pixels")) radio.addEventListener("change", () => change({ pixels: radio.value }));
  $("windows").addEventListener("change", () => change({ windows: $("windows").checked }));

  $("copy-link").addEventListener("click", async () => {
    const link = location.href.split("#")[0] + toHash(state, limits);
    try {
      await navigator.clipboard.writeText(link);
      say("Link copied");
      $("copy-link").textContent = "Copied";
    } catch {
      history.replaceState(null, "", toHash(state, limits) || "#");
      $("copy-link").textContent = "It is in the address bar";
    }
    setTimeout(() => ($("copy-link").textContent = "Copy link"), 2000);
  });

  return { show, change, newSeed, again };
}
