/* The studio's worker: computes glimpse by glimpse and hands each over as soon as it is there.
 *
 * It gets {load: {manifest, buffer}}, {draw: {id, n, seed, temperature, latents}}, {read: {id, x, seed}}, {gif: {...}};
 * a newer job of the same kind ends the one before. It sends {glimpse: {kind, id, t, ...}}, {gif: {id, bytes}}, {error}.
 */
import { PURPOSE, initialState, lossX, noise, readModel, step } from "./draw.js";
import { gifWriter } from "./gif.js";

const SLICE = 12; // milliseconds of work before looking for newer jobs
const newest = { draw: 0, read: 0 };
let model = null, gif = null;

onmessage = async ({ data }) => {
  try {
    if (data.load) model = readModel(data.load.manifest, data.load.buffer);
    if (data.draw) {
      const { id, n, seed, temperature, latents } = data.draw;
      const drawn = (i) => latents === "all" || latents === i % model.zSize; // the others are at the prior's mean, 0
      const eps = noise(model, n, seed, PURPOSE.sample).map((value, i) => (drawn(i) ? temperature * value : 0));
      await glimpses("draw", id, n, eps, null);
    }
    if (data.read) {
      const { id, x, seed } = data.read;
      await glimpses("read", id, 1, noise(model, 1, seed, PURPOSE.read), x);
    }
    if (data.gif) animate(data.gif);
  } catch (error) {
    postMessage({ error: error.message });
  }
};

async function glimpses(kind, id, b, eps, x) {
  newest[kind] = id;
  const state = initialState(model, b), size = b * model.zSize;
  let since = performance.now();
  for (let t = 0; t < model.steps; t++) {
    const made = step(model, state, eps.subarray(t * size, (t + 1) * size), x);
    const norms = Float64Array.from({ length: b }, (_, k) => Math.hypot(...made.z.subarray(k * model.zSize, (k + 1) * model.zSize)));
    const { canvas, xHat, readWindow, writeWindow, kl } = made;
    const loss = x && lossX(x, canvas, b);
    postMessage({ glimpse: { kind, id, t, canvas, xHat, readWindow, writeWindow, kl, norms, lossX: loss } });
    if (performance.now() - since > SLICE) {
      await new Promise((resolve) => setTimeout(resolve, 0));
      if (newest[kind] !== id) return;
      since = performance.now();
    }
  }
}

/** One message of an animation: {id, width, height, palette} begins it, {rgba, hundredths} adds, {end} finishes. */
function animate(message) {
  if (message.palette) gif = { id: message.id, writer: gifWriter(message.width, message.height, message.palette) };
  if (message.id !== gif?.id) return;
  if (message.rgba) gif.writer.add(message.rgba, message.hundredths);
  if (message.end) {
    postMessage({ gif: { id: gif.id, bytes: gif.writer.bytes() } });
    gif = null;
  }
}
