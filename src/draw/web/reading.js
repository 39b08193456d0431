/* The tab Show it something: a picture, and how the model reads it. */
import { lossX, rectangle, shareBelow, sigmoid } from "./draw.js";
import { SEEDS, bitsFrom, bitsToText } from "./state.js";
import { READ, WRITE, fit, picture, place, probability, show, signedPicture } from "./view.js";
import { $, say, thin } from "./common.js";
import { paper } from "./paper.js";
import { Player } from "./player.js";

const ENOUGH = 300; // milliseconds of quiet after which a drawing is read

/** How unusual a picture is among test images, in words. */
function rank(bound, percentiles) {
  const share = shareBelow(bound, percentiles);
  if (share === 0 || share === 1) return `${share ? "More" : "Less"} surprising than any test image.`;
  return `More surprising than ${Math.round(100 * share)} % of the test images.`;
}

/** Makes the tab; `page` holds what the tabs share (see app.js). */
export function readingTab(page) {
  const { size, steps, count, channels, read_n, write_n, canvas0, about, shownImages, labels, limits } = page;
  const { worker, state, remember } = page;
  const { width } = size;
  const reading = new Player($("show-transport"), steps, () => state.speed, renderReading);
  reading.changed = () => page.keepT("show", reading);
  let x = null, waitingToRead = 0;
  const blank = channels === 1 ? 0 : canvas0.reduce((sum, value) => sum + sigmoid(value), 0) / count;
  const cursor = document.createElement("span");
  cursor.id = "cursor";
  $("drop").append(cursor);
  const pad = paper($("paper"), size, {
    binary: Boolean(about.binary) && channels === 1,
    blank,
    cursor,
    tool: () => {
      if (document.querySelector('[name="tool"]:checked').value === "erase") return null;
      const colour = $("colour").value;
      return channels === 1 ? [1] : [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
    },
    changed: () => drew(ENOUGH),
  });
  $("colour-field").hidden = channels !== 3;

  /** The picture was changed by hand: read it when the hand rests. */
  function drew(delay) {
    state.example = null;
    state.picture = limits.pixels && !pad.isBlank() ? bitsToText(pad.pixels) : null;
    pressExample();
    remember();
    clearTimeout(waitingToRead);
    waitingToRead = setTimeout(() => startReading(null), delay);
  }

  function startReading(t) {
    clearTimeout(waitingToRead);
    const nothing = pad.isBlank();
    $("show-empty").hidden = !nothing;
    $("reading").hidden = nothing;
    layOut();
    x = pad.pixels.slice();
    const id = reading.begin(nothing ? 0 : t);
    if (!nothing) worker.postMessage({ read: { id, x, seed: state.noise } });
  }

  function renderReading(t) {
    if (x === null || $("reading").hidden) return;
    const glimpse = t > 0 ? reading.glimpses[t - 1] : null, canvas = glimpse ? glimpse.canvas : canvas0;
    const windowsAt = (name, n, last, colour) => {
      const boxes = [];
      for (let age = last; age >= 0; age--) {
        const windows = t - age > 0 ? reading.glimpses[t - 1 - age][name] : null;
        if (!windows || reading.settled) continue;
        const over = { box: rectangle(windows, 0, n), colour: colour.map((part) => part * (1 - age / (last + 2))) };
        boxes.push(age ? thin(over) : over);
      }
      return boxes;
    };
    const dim = read_n !== null && !reading.settled ? 0.5 : 1;
    show($("looked"), picture(x, 0, size, (value) => dim * value), windowsAt("readWindow", read_n, 2, READ));
    const error = Float64Array.from(x, (value, i) => value - sigmoid(canvas[i])); // what the next glimpse would see
    show($("missing"), signedPicture(error, 0, size, 1), []);
    show($("drawn"), picture(canvas, 0, size, probability), windowsAt("writeWindow", write_n, 0, WRITE));
    const looked = reading.settled ? "what it read" : "where it looks, the last three windows";
    $("looked-caption").textContent = read_n === null ? "it sees the whole picture" : looked;
    const kls = reading.glimpses.map(({ kl }) => kl[0]);
    reading.drawBars(kls, "KL of each glimpse, nats");
    const pixels = glimpse ? glimpse.lossX[0] : lossX(x, canvas0, 1)[0];
    const latents = kls.slice(0, t).reduce((sum, value) => sum + value, 0);
    $("bound-name").textContent = t === steps ? "bound" : "bound, if it stopped here";
    $("bound").textContent = (pixels + latents).toFixed(2);
    $("loss-x").textContent = pixels.toFixed(2);
    $("loss-z").textContent = latents.toFixed(2);
    $("rank").hidden = !about.percentiles_nats || t < steps;
    if (!$("rank").hidden) $("rank").textContent = rank(pixels + latents, about.percentiles_nats);
  }

  const average = about.bound_nats ? ` Validation images: ${about.bound_nats.toFixed(1)} on average.` : "";
  $("bound-help").textContent = about.binary
    ? `An upper bound on −log p(picture) from one drawing; lower is better.${average}`
    : `The targets are intensities, not bits: a cross-entropy, no code length. Lower is better.${average}`;

  const pressExample = () =>
    [...$("examples").children].forEach((button, k) => button.setAttribute("aria-pressed", state.example === k));
  $("examples-field").hidden = shownImages.length === 0;
  $("examples").replaceChildren(...shownImages.map((image, k) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    const label = labels[k];
    button.type = "button";
    button.setAttribute("aria-label", `Test image ${k + 1}${label === undefined ? "" : `, labelled ${label}`}`);
    fit(canvas, size, Math.max(44, width));
    place(canvas.getContext("2d"), picture(image, 0, size, (value) => value), 0, 0, canvas.width / width);
    button.append(canvas);
    button.addEventListener("click", () => choose(k));
    return button;
  }));
  pressExample();

  function choose(k) {
    pad.set(shownImages[k]);
    Object.assign(state, { example: k, picture: null });
    pressExample();
    remember();
    startReading(null);
  }

  async function take(blob) {
    if (!blob) return;
    try {
      await pad.load(blob);
      drew(0);
    } catch {
      say("That is no image this browser can read: choose a PNG, JPEG, GIF or WebP file.");
    }
  }

  const imageOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files?.[0];
  $("clear").addEventListener("click", () => {
    pad.clear();
    drew(0);
  });
  $("invert").addEventListener("click", () => {
    pad.invert();
    drew(0);
  });
  $("file").addEventListener("change", () => {
    take($("file").files[0]);
    $("file").value = "";
  });
  $("read-again").addEventListener("click", () => {
    state.noise = (state.noise + 1) % SEEDS;
    remember();
    startReading(null);
  });
  document.addEventListener("paste", (event) => {
    const blob = imageOf(event.clipboardData);
    if (!blob) return;
    page.switchTo("show");
    take(blob);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    page.switchTo("show");
    take(imageOf(event.dataTransfer));
  });

  /** Everything as large as there is room; the sheet's pixels are whole. */
  function layOut() {
    const room = $("reading").clientWidth, sheetRoom = $("drop").parentElement.clientWidth - 34;
    if (room) for (const id of ["looked", "missing", "drawn"]) fit($(id), size, (room - 24) / 3);
    if (sheetRoom <= 0) return;
    const whole = Math.max(1, Math.floor(Math.min(sheetRoom, 320) / width));
    $("paper").style.width = `${whole * width}px`;
    $("paper").style.height = `${whole * size.height}px`;
  }

  /** Begins as the state says, at glimpse t. */
  function begin(t) {
    pressExample();
    layOut();
    if (state.example !== null) pad.set(shownImages[state.example]);
    else if (state.picture !== null) pad.set(bitsFrom(state.picture, count));
    else pad.clear();
    startReading(t);
  }

  return { player: reading, layOut, begin };
}
