/* The page's whole state as the address's #fragment, every value checked. No DOM. */

export const COUNTS = [1, 4, 9, 16, 25, 36]; // canvases
export const SPEEDS = [1, 2, 4, 8, 15, 30, 60]; // glimpses per second
export const SEEDS = 2 ** 32;

/** The state of a page that was opened without any. t null means: play from the start. */
export function defaults({ steps, home = "watch" }) {
  return {
    tab: home, // watch, show or training
    seed: 1, n: 16, temperature: 1, latents: "all", // what is drawn
    pixels: "probabilities", // or "binary"
    windows: true,
    speed: SPEEDS.find((speed) => steps / speed <= 4) ?? 60, // about four seconds, whatever T
    t: null,
    open: null, // the canvas shown large
    example: null, picture: null, // what is shown to the model: an example's number, or black and white pixels
    noise: 0, // seed of the reading
    curve: "bound", axis: "steps", // of the runs in training
    hide: [], // names of the runs left out
    run: null, // the one whose samples are shown
  };
}

const whole = (least, most) => (text) =>
  /^\d{1,10}$/.test(text) && Number(text) >= least && Number(text) <= most ? Number(text) : undefined;
const oneOf = (choices) => (text) => choices.find((choice) => String(choice) === text);

const NAMES = 100; // of runs
const name = (text) => (text.length > 0 && text.length <= 255 ? text : undefined);

/** Which latents draw: all of them, one of those that tell something, or none. */
export const latentChoices = (telling) => ["all", ...telling, "none"];

function readers({ steps, examples, pixels, latents = [], training = false }) {
  return {
    tab: oneOf(["watch", "show", ...(training ? ["training"] : [])]),
    seed: whole(0, SEEDS - 1),
    n: oneOf(COUNTS),
    temperature: (text) => (/^\d(\.\d{1,2})?$/.test(text) && Number(text) <= 2 ? Number(text) : undefined),
    latents: oneOf(latentChoices(latents)),
    pixels: oneOf(["probabilities", "binary"]),
    windows: (text) => ({ 0: false, 1: true })[text],
    speed: oneOf(SPEEDS),
    t: whole(0, steps),
    open: whole(0, Math.max(...COUNTS) - 1),
    example: whole(0, examples - 1),
    picture: (text) => (bitsFrom(text, pixels) ? text : undefined),
    noise: whole(0, SEEDS - 1),
    ...(training && {
      curve: oneOf(["bound", "loss_x", "loss_z"]),
      axis: oneOf(["steps", "minutes"]),
      hide: name,
      run: name,
    }),
  };
}

/** The state that a fragment means; what is missing, unknown or out of range is left at its default.
 *
 * `limits` holds the model's steps, pixels of an image, number of examples and latents that tell something, whether there
 * are runs in training, and which tab the page opens on.
 */
export function fromHash(hash, limits) {
  const state = defaults(limits);
  const read = readers(limits);
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const value = Object.hasOwn(read, name) ? read[name](text) : undefined;
    if (value === undefined) continue;
    if (!Array.isArray(state[name])) state[name] = value;
    else if (state[name].length < NAMES) state[name].push(value);
  }
  if (state.open !== null && state.open >= state.n) state.open = null;
  return state;
}

/** The shortest fragment that means this state. */
export function toHash(state, limits) {
  const plain = defaults(limits), parts = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (Array.isArray(value)) for (const each of value) parts.append(name, each);
    else if (value !== plain[name] && value !== null) parts.set(name, typeof value === "boolean" ? Number(value) : value);
  }
  return String(parts) && `#${parts}`;
}

/** Black and white pixels (0 or 1) as base64url text, eight to a byte, the first the highest bit. */
export function bitsToText(pixels) {
  const bytes = new Uint8Array(Math.ceil(pixels.length / 8));
  pixels.forEach((pixel, i) => {
    if (pixel) bytes[i >> 3] |= 128 >> (i & 7);
  });
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The `count` pixels that `bitsToText` wrote, or null if the text is no such thing. */
export function bitsFrom(text, count) {
  const length = Math.ceil(count / 8);
  if (!/^[\w-]+$/.test(text) || text.length !== Math.ceil((length * 4) / 3)) return null;
  let bytes;
  try {
    bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  } catch {
    return null;
  }
  if (bytes.length !== length) return null;
  return Float64Array.from({ length: count }, (_, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
}
