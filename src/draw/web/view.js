/* Pictures: onto canvases that it is given. It knows pixels, windows and bars, and nothing of the page's state. */
import { sigmoid } from "./draw.js";
import { adaptedPalette } from "./gif.js";

// The theme of render.py: windows that write are red, those that read green.
export const GROUND = [36, 37, 42], WRITE = [255, 66, 54], READ = [52, 211, 96];
const NONE = [16, 17, 20], UP = [255, 150, 60], DOWN = [70, 140, 255]; // signed values

/** One image of an array (b, c, h, w) as ImageData, every value of it through `level`, to [0, 1]. */
export function picture(values, index, { channels, height, width }, level) {
  const image = new ImageData(width, height), plane = height * width, from = index * channels * plane;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) {
      const at = from + (channels === 3 ? c : 0) * plane + i;
      image.data[4 * i + c] = 255 * level(values[at], at - from);
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
}

/** Probabilities of a canvas of logits. */
export const probability = (logit) => sigmoid(logit);

/** Pixels drawn from a canvas of logits with fixed uniform numbers: one changes only when its probability does. */
export const drawnWith = (uniform) => (logit, i) => (uniform[i] < sigmoid(logit) ? 1 : 0);

/** An image of signed values, `most` being full colour: orange above zero, blue below; RGB around grey. */
export function signedPicture(values, index, model, most) {
  const { channels, height, width } = model;
  if (channels === 3) return picture(values, index, model, (value) => 0.5 + value / (2 * most));
  const image = new ImageData(width, height), from = index * height * width;
  for (let i = 0; i < height * width; i++) {
    const value = Math.min(Math.max(values[from + i] / most, -1), 1), colour = value > 0 ? UP : DOWN;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = NONE[c] + Math.abs(value) * (colour[c] - NONE[c]);
    image.data[4 * i + 3] = 255;
  }
  return image;
}

let scratch = null;

/** Draws an image at (x, y), every pixel a square of `scale` screen pixels, and windows {box, colour} over it. */
export function place(context, image, x, y, scale, windows = []) {
  scratch ??= document.createElement("canvas");
  scratch.width = image.width;
  scratch.height = image.height;
  scratch.getContext("2d").putImageData(image, 0, 0);
  const width = image.width * scale, height = image.height * scale;
  context.imageSmoothingEnabled = false;
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.drawImage(scratch, x, y, width, height);
  for (const { box, colour } of windows) outline(context, box, x, y, scale, colour, Math.min(width, height));
  context.restore();
}

/** A window: its border is centred on the rectangle and as thick as sigma, within limits, as in render.py. */
function outline(context, box, x, y, scale, colour, side) {
  const clip = (value) => Math.min(Math.max((value + 0.5) * scale, -1e5), 1e5);
  const least = Math.max(1, side / 160); // a hairline is lost on a dense screen
  const thick = Math.round(Math.min(Math.max(box.sigma * scale, least), Math.max(least, side / 8)));
  const [x0, y0] = [box.left, box.top].map((value) => Math.round(clip(value) - thick / 2));
  const x1 = Math.max(Math.round(clip(box.right) - thick / 2), x0);
  const y1 = Math.max(Math.round(clip(box.bottom) - thick / 2), y0);
  if (![x0, y0, x1, y1].every(Number.isFinite)) return;
  context.fillStyle = `rgb(${colour.join(" ")})`;
  context.fillRect(x + x0, y + y0, x1 - x0 + thick, thick);
  context.fillRect(x + x0, y + y1, x1 - x0 + thick, thick);
  context.fillRect(x + x0, y + y0, thick, y1 - y0 + thick);
  context.fillRect(x + x1, y + y0, thick, y1 - y0 + thick);
}

/** Sizes a canvas to about `room` CSS pixels, so that image pixels are whole screen pixels if they are large enough. */
export function fit(canvas, model, room) {
  const dense = window.devicePixelRatio || 1;
  let scale = (room * dense) / model.width;
  if (scale >= 3) scale = Math.floor(scale);
  canvas.width = Math.round(scale * model.width);
  canvas.height = Math.round(scale * model.height);
  canvas.style.width = `${canvas.width / dense}px`;
  canvas.style.height = `${canvas.height / dense}px`;
}

/** Fills a fitted canvas with one image and its windows. */
export function show(canvas, image, windows) {
  place(canvas.getContext("2d"), image, 0, 0, canvas.width / image.width, windows);
}

/** A bar per glimpse; glimpse t's ends where the thumb of the range above stands at t. Values to come are left out. */
export function bars(canvas, values, steps, t) {
  const dense = window.devicePixelRatio || 1, thumb = 16 * dense;
  const width = Math.round(canvas.clientWidth * dense), height = Math.round(canvas.clientHeight * dense);
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  context.clearRect(0, 0, width, height);
  const pitch = (width - thumb) / steps, most = Math.max(...values, 1e-9);
  for (let i = 0; i < steps; i++) {
    const left = Math.round(thumb / 2 + i * pitch), right = Math.round(thumb / 2 + (i + 1) * pitch);
    const tall = i < values.length ? Math.max(dense, (values[i] / most) * height) : dense;
    context.fillStyle = style.getPropertyValue(i + 1 === t ? "--accent" : i < values.length && i < t ? "--soft" : "--bar");
    context.fillRect(left, height - tall, Math.max(1, right - left - dense), tall);
  }
}

/** Several pictures {image, windows} on the dark ground, `columns` side by side, on a new canvas. */
export function sheet(cells, columns, scale) {
  const { width, height } = cells[0].image;
  const gap = Math.max(2, Math.round((Math.max(width, height) * scale) / 30)), rows = Math.ceil(cells.length / columns);
  const canvas = document.createElement("canvas");
  canvas.width = columns * (width * scale + gap) + 3 * gap;
  canvas.height = rows * (height * scale + gap) + 3 * gap;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = `rgb(${GROUND.join(" ")})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  cells.forEach(({ image, windows }, k) => {
    const x = 2 * gap + (k % columns) * (width * scale + gap), y = 2 * gap + Math.floor(k / columns) * (height * scale + gap);
    place(context, image, x, y, scale, windows);
  });
  return canvas;
}

/** The colours of an animation: the theme's exactly, and greys, or those that RGB bytes need. */
export function palette(rgba) {
  const greys = Array.from({ length: 62 }, (_, i) => Array(3).fill(Math.round((255 * i) / 61)));
  return [GROUND, WRITE, ...(rgba ? adaptedPalette(rgba, 254) : greys)];
}
