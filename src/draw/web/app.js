/* The page: one state object, all of it in the address; the worker computes, view.js paints. */
import { PURPOSE, lossX, rectangle, sigmoid, uniforms } from "./draw.js";
import { COUNTS, SEEDS, SPEEDS, bitsFrom, bitsToText, fromHash, toHash } from "./state.js";
import { READ, WRITE, bars, drawnWith, fit, palette, picture, place, probability, sheet, show, signedPicture } from "./view.js";
import { paper } from "./paper.js";

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const ENOUGH = 300; // milliseconds of quiet after which a drawing is read

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

/** A window as a thin line, where its border would hide what matters. */
const thin = ({ box, colour }) => ({ box: { ...box, sigma: 0 }, colour });

const say = (message) => ($("status").textContent = message);

/** The model's manifest and binary, and the worker: from within this page if it was exported, else from beside it. */
async function load() {
  if ($("manifest")) {
    const text = atob($("weights").textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    $("weights").remove(); // the text is larger than what it holds
    const source = new Blob([$("worker-source").textContent], { type: "text/javascript" });
    return { manifest: JSON.parse($("manifest").textContent), buffer: bytes.buffer, worker: new Worker(URL.createObjectURL(source)) };
  }
  const [manifest, weights] = await Promise.all([fetch("manifest.json"), fetch("weights.bin")]);
  if (!manifest.ok || !weights.ok) throw new Error("the server has no model to show");
  return { manifest: await manifest.json(), buffer: await weights.arrayBuffer(), worker: new Worker("worker.js", { type: "module" }) };
}

/** The glimpses of one drawing as they come, and which of them is shown: t of 0, nothing yet, to the last. */
class Player {
  constructor(root, steps, speed, render) {
    Object.assign(this, { steps, speed, render, glimpses: [], t: 0, playing: false, settled: false, job: 0, since: 0 });
    this.button = root.querySelector(".play");
    this.range = root.querySelector("input");
    this.bars = root.querySelector(".bars");
    this.strip = root.querySelector(".strip");
    this.output = root.querySelector("output");
    this.range.max = steps;
    this.changed = () => {};
    this.button.addEventListener("click", () => this.toggle());
    this.range.addEventListener("input", () => this.seek(Number(this.range.value)));
    const point = (event) => {
      if (event.type === "pointerdown") this.bars.setPointerCapture(event.pointerId);
      if (!this.bars.hasPointerCapture(event.pointerId)) return;
      const box = this.bars.getBoundingClientRect();
      this.seek(Math.ceil(((event.clientX - box.left - 8) / (box.width - 16)) * steps));
    };
    this.bars.addEventListener("pointerdown", point);
    this.bars.addEventListener("pointermove", point);
    this.tick = this.tick.bind(this);
  }

  /** The glimpse shown: the one wanted, or the newest there is. */
  get shown() {
    return Math.min(this.t, this.glimpses.length);
  }

  /** Begins another drawing; where it was not playing it stays at its glimpse. */
  begin(t) {
    this.job++;
    this.glimpses = [];
    if (t !== null) this.seek(t);
    else if (still.matches) this.settle();
    else this.play(0);
    return this.job;
  }

  play(from = this.t >= this.steps ? 0 : this.t) {
    Object.assign(this, { t: from, playing: true, settled: false, since: performance.now() });
    this.update();
    requestAnimationFrame(this.tick);
  }

  seek(t) {
    Object.assign(this, { t: Math.min(Math.max(t, 0), this.steps), playing: false, settled: false });
    this.update();
  }

  /** The end, without windows over what was drawn. */
  settle() {
    Object.assign(this, { t: this.steps, playing: false, settled: true });
    this.update();
  }

  toggle() {
    if (this.playing) this.seek(this.shown);
    else this.play();
  }

  tick(now) {
    if (!this.playing) return;
    const pause = 1000 / this.speed();
    if (this.t < this.steps && this.glimpses.length > this.t && now - this.since >= pause) {
      const due = Math.floor((now - this.since) / pause);
      this.t = Math.min(this.t + due, this.glimpses.length);
      this.since = due > 4 ? now : this.since + due * pause; // a page that was hidden does not rush after
      this.paint();
    }
    if (this.t >= this.steps && now - this.since > Math.max(600, pause)) this.settle();
    else requestAnimationFrame(this.tick);
  }

  add(glimpse) {
    this.glimpses.push(glimpse);
    if (!this.playing || this.glimpses.length === this.t) this.update();
  }

  /** Paints at the next frame. */
  update() {
    this.changed();
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    const t = this.shown;
    this.button.classList.toggle("on", this.playing);
    this.button.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    this.range.value = t;
    this.range.setAttribute("aria-valuetext", `glimpse ${t} of ${this.steps}`);
    this.output.textContent = `glimpse ${t} of ${this.steps}`;
    this.render(t);
  }

  drawBars(values, label) {
    bars(this.bars, values, this.steps, this.shown);
    this.strip.textContent = label;
    this.bars.setAttribute("aria-label", `${label}: ${values.map((value) => value.toFixed(1)).join(", ")}`);
  }
}

async function main() {
  const { manifest, buffer, worker } = await load();
  const { model: size, about, examples: exampleTable, tensors } = manifest;
  const { channels, height, width, steps, read_n, write_n } = size;
  const count = channels * height * width;
  const canvas0 = new Float32Array(buffer, tensors.canvas0.offset, count).slice();
  const shownImages = Array.from({ length: exampleTable.count }, (_, k) =>
    Float64Array.from(new Uint8Array(buffer, exampleTable.offset + k * count, count), (value) => value / 255));
  const limits = { steps, examples: shownImages.length, pixels: channels === 1 && about.binary ? count : 0 };
  worker.onerror = (event) => fail(`The model could not be computed: ${event.message ?? "the worker did not start"}. Load the page again.`);
  worker.postMessage({ load: { manifest, buffer } }, [buffer]);

  let state = fromHash(location.hash, limits), uniformOf = [];
  describe();

  // The address

  let writing = 0;
  const remember = () => {
    clearTimeout(writing);
    writing = setTimeout(() => history.replaceState(null, "", toHash(state, limits) || "#"), 250); // Safari limits how often
  };
  const keepT = (player) => {
    state.t = player.playing || player.settled ? null : player.t;
    remember();
  };

  function describe() {
    const reads = read_n === null ? "reads the whole image" : `reads ${read_n} × ${read_n}`;
    const writes = write_n === null ? "writes the whole canvas" : `writes ${write_n} × ${write_n}`;
    const parts = [about.name, `${about.data ?? ""}`, `${width} × ${height}${channels === 3 ? " RGB" : ""}`, `${steps} glimpses`, reads, writes,
      `${(about.parameters / 1e6).toPrecision(2)} M weights`];
    if (about.bound_nats) parts.push(`validation bound ${about.bound_nats.toFixed(1)} nats`);
    $("about").textContent = parts.filter(Boolean).join(" · ");
    const through = write_n === null ? "over the whole canvas" : "through a window that it places itself";
    $("lead").textContent = `A recurrent network that draws, glimpse by glimpse, ${through}.`;
    document.body.classList.toggle("rgb", channels === 3); // signed RGB is shown around grey, not in two colours
    document.title = `DRAW · ${about.name ?? "studio"}`;
  }

  // Watch

  const watch = new Player($("watch-transport"), steps, () => state.speed, renderWatch);
  watch.changed = () => state.tab === "watch" && keepT(watch);
  let cells = [];

  function startWatch(t) {
    uniformOf = [];
    const id = watch.begin(t);
    worker.postMessage({ draw: { id, n: state.n, seed: state.seed, temperature: state.temperature } });
  }

  const valuesAt = (t, k) => (t === 0 ? [canvas0, 0] : [watch.glimpses[t - 1].canvas, k]);

  /** Canvas k after t glimpses, as it is shown. */
  function cellAt(t, k, windows) {
    if (state.pixels === "binary" && !uniformOf[k]) {
      const next = uniforms(state.seed, k, PURPOSE.pixels);
      uniformOf[k] = Float64Array.from({ length: count }, next);
    }
    const image = picture(...valuesAt(t, k), size, state.pixels === "binary" ? drawnWith(uniformOf[k]) : probability);
    const through = windows && t > 0 ? watch.glimpses[t - 1].writeWindow : null;
    return { image, windows: through ? [{ box: rectangle(through, k, write_n), colour: WRITE }] : [] };
  }

  function renderWatch(t) {
    if (cells.length !== state.n) layOut();
    const windows = state.windows && !watch.settled;
    $("grid").hidden = state.open !== null;
    $("large").hidden = state.open === null;
    if (state.open === null) {
      cells.forEach((canvas, k) => {
        const { image, windows: over } = cellAt(t, k, windows);
        show(canvas, image, over);
      });
      const means = watch.glimpses.map(({ norms }) => norms.reduce((sum, value) => sum + value, 0) / norms.length);
      watch.drawBars(means, "‖z‖ of each glimpse, mean");
      return;
    }
    const k = state.open, { image, windows: over } = cellAt(t, k, windows);
    show($("large-canvas"), image, over);
    const stroke = strokeAt(t, k), most = stroke.reduce((sofar, value) => Math.max(sofar, Math.abs(value)), 1e-6);
    show($("large-stroke"), signedPicture(stroke, 0, size, most), over.map(thin));
    $("which").textContent = `canvas ${k + 1} of ${state.n}`;
    describeWindow(t, k, most);
    watch.drawBars(watch.glimpses.map(({ norms }) => norms[k]), "‖z‖ of each glimpse");
  }

  function strokeAt(t, k) {
    if (t === 0) return new Float64Array(count);
    const [before, i] = valuesAt(t - 1, k), [after] = valuesAt(t, k);
    return Float64Array.from({ length: count }, (_, p) => after[k * count + p] - before[i * count + p]);
  }

  function describeWindow(t, k, most) {
    const entries = [];
    if (write_n === null) entries.push(["write window", "none: every stroke covers the whole canvas"]);
    else if (t > 0) {
      const [g_X, g_Y, delta, sigma2, gamma] = watch.glimpses[t - 1].writeWindow.subarray(5 * k, 5 * k + 5);
      entries.push(["centre x, y", `${g_X.toFixed(1)}, ${g_Y.toFixed(1)} px`], ["stride δ", `${delta.toFixed(2)} px`],
        ["sigma σ", `${Math.sqrt(sigma2).toFixed(2)} px`], ["intensity 1/γ", (1 / gamma).toFixed(2)]);
    } else entries.push(["write window", "before the first glimpse there is none"]);
    if (t > 0) entries.push(["strongest change", `${most.toFixed(2)} logits`], ["‖z‖", watch.glimpses[t - 1].norms[k].toFixed(2)]);
    $("window").replaceChildren(...entries.map(([name, value]) => {
      const group = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = value;
      group.append(dt, dd);
      return group;
    }));
  }

  /** As many canvases as asked for, each a button, and everything as large as there is room. */
  function layOut() {
    const columns = Math.sqrt(state.n);
    if (cells.length !== state.n) {
      cells = Array.from({ length: state.n }, () => document.createElement("canvas"));
      $("grid").replaceChildren(...cells.map((canvas, k) => {
        const button = document.createElement("button");
        button.type = "button";
        button.tabIndex = k === 0 ? 0 : -1;
        button.setAttribute("aria-label", `Canvas ${k + 1}, show large`);
        button.append(canvas);
        button.addEventListener("click", () => openCanvas(k));
        return button;
      }));
      $("grid").style.gridTemplateColumns = `repeat(${columns}, auto)`;
    }
    const stage = $("watch").querySelector(".stage").clientWidth;
    if (stage) {
      const tall = Math.max(240, innerHeight - 245) * (width / height);
      for (const canvas of cells) fit(canvas, size, (Math.min(stage, tall) - 6 * (columns - 1)) / columns);
      const pair = stage >= 480 ? (stage - 12) / 2 : stage;
      for (const id of ["large-canvas", "large-stroke"]) fit($(id), size, Math.min(pair, Math.max(200, tall - 80)));
    }
    const side = $("reading").clientWidth;
    if (side) for (const id of ["looked", "missing", "drawn"]) fit($(id), size, (side - 24) / 3);
    const sheetRoom = $("drop").parentElement.clientWidth - 34;
    if (sheetRoom > 0) {
      const whole = Math.max(1, Math.floor(Math.min(sheetRoom, 320) / width));
      $("paper").style.width = `${whole * width}px`;
      $("paper").style.height = `${whole * height}px`;
    }
  }

  function openCanvas(k) {
    const from = state.open;
    state.open = k;
    remember();
    layOut();
    watch.update();
    if (k === null) requestAnimationFrame(() => focusCell(from ?? 0));
    else if (from === null) requestAnimationFrame(() => $("back").focus());
  }

  function focusCell(k) {
    const buttons = [...$("grid").children];
    buttons.forEach((button, i) => (button.tabIndex = i === k ? 0 : -1));
    buttons[k]?.focus();
  }

  $("back").addEventListener("click", () => openCanvas(null));
  $("previous").addEventListener("click", () => openCanvas((state.open + state.n - 1) % state.n));
  $("next").addEventListener("click", () => openCanvas((state.open + 1) % state.n));
  $("grid").addEventListener("keydown", (event) => {
    const k = [...$("grid").children].indexOf(document.activeElement), columns = Math.sqrt(state.n);
    const to = { ArrowLeft: k - 1, ArrowRight: k + 1, ArrowUp: k - columns, ArrowDown: k + columns, Home: 0, End: state.n - 1 }[event.key];
    if (k < 0 || to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (to >= 0 && to < state.n) focusCell(to);
  });

  // The controls

  const options = (id, values) => $(id).replaceChildren(...values.map((value) => new Option(value, value)));
  options("n", COUNTS);
  options("speed", SPEEDS);

  function showControls() {
    $("seed").value = state.seed;
    $("n").value = state.n;
    $("speed").value = state.speed;
    $("temperature").value = state.temperature;
    $("temperature-value").textContent = state.temperature.toFixed(2);
    document.querySelector(`[name="pixels"][value="${state.pixels}"]`).checked = true;
    $("windows").checked = state.windows;
    $("windows-field").hidden = write_n === null;
    $("pixels-field").hidden = !about.binary;
    for (const name of ["watch", "show"]) {
      const chosen = state.tab === name;
      $(name).hidden = !chosen;
      $(`tab-${name}`).setAttribute("aria-selected", chosen);
      $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
    }
  }

  /** Changes the state; `restart` draws anew from the start, `redraw` draws anew and stays at the glimpse. */
  function change(values, { restart = false, redraw = false } = {}) {
    Object.assign(state, values);
    if (state.open !== null && state.open >= state.n) state.open = null;
    showControls();
    remember();
    if (restart) startWatch(null);
    else if (redraw) {
      const { settled, playing, t } = watch;
      startWatch(playing ? null : t);
      if (settled) watch.settle();
    } else watch.update();
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
      showControls();
    }
  });
  $("n").addEventListener("change", () => change({ n: Number($("n").value) }, { redraw: true }));
  $("speed").addEventListener("change", () => change({ speed: Number($("speed").value) }));
  $("temperature").addEventListener("input", () => change({ temperature: Number($("temperature").value) }, { redraw: true }));
  for (const radio of document.getElementsByName("pixels")) radio.addEventListener("change", () => change({ pixels: radio.value }));
  $("windows").addEventListener("change", () => change({ windows: $("windows").checked }));

  // Saving

  function download(blob, suffix) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `draw-seed-${state.seed}${suffix}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(`Saved ${link.download}`);
  }

  /** What is on the screen after t glimpses: all canvases, or the large one. */
  function sheetAt(t, windows, target) {
    const chosen = state.open === null ? cells.map((_, k) => k) : [state.open];
    const columns = Math.sqrt(chosen.length);
    const scale = Math.min(Math.max(Math.round(target / (columns * Math.max(width, height))), 1), 12);
    return sheet(chosen.map((k) => cellAt(t, k, windows)), columns, scale);
  }

  $("save-png").addEventListener("click", () => {
    sheetAt(watch.shown, state.windows && !watch.settled, 900).toBlob((blob) => download(blob, `-t${watch.shown}.png`));
  });

  let animations = 0;
  $("save-gif").addEventListener("click", async () => {
    if (watch.glimpses.length < steps) return say("Still drawing: try again when the last glimpse is there.");
    $("save-gif").disabled = true;
    const id = ++animations, pace = Math.max(2, Math.round(100 / state.speed));
    for (let frame = 0; frame <= steps + 1; frame++) {
      const canvas = sheetAt(Math.min(frame, steps), state.windows && frame <= steps, 480);
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const start = frame === 0 ? { width: canvas.width, height: canvas.height, palette: palette(channels) } : {};
      const message = { id, rgba: data, hundredths: frame > steps ? 200 : pace, end: frame > steps, ...start };
      worker.postMessage({ gif: message }, [data.buffer]);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
  });

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

  // Show it something

  const reading = new Player($("show-transport"), steps, () => state.speed, renderReading);
  reading.changed = () => state.tab === "show" && keepT(reading);
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
    $("looked-caption").textContent = read_n === null ? "it sees the whole picture" : "where it looks, the last three windows";
    const kls = reading.glimpses.map(({ kl }) => kl[0]);
    reading.drawBars(kls, "KL of each glimpse, nats");
    const pixels = glimpse ? glimpse.lossX[0] : lossX(x, canvas0, 1)[0];
    const latents = kls.slice(0, t).reduce((sum, value) => sum + value, 0);
    $("bound-name").textContent = t === steps ? "bound" : "bound, if it stopped here";
    $("bound").textContent = (pixels + latents).toFixed(2);
    $("loss-x").textContent = pixels.toFixed(2);
    $("loss-z").textContent = latents.toFixed(2);
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
    const label = exampleTable.labels[k];
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
      $("error").hidden = true;
      drew(0);
    } catch {
      fail("That is no image this browser can read: choose a PNG, JPEG, GIF or WebP file.");
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
    switchTo("show");
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
    switchTo("show");
    take(imageOf(event.dataTransfer));
  });

  // Tabs and keys

  function switchTo(tab) {
    if (state.tab === tab) return;
    state.tab = tab;
    for (const player of [watch, reading]) if (player.playing) player.seek(player.shown);
    showControls();
    layOut();
    if (tab === "watch" && watch.job === 0) startWatch(null);
    else (tab === "watch" ? watch : reading).update();
  }
  const tabs = ["watch", "show"];
  for (const name of tabs) {
    $(`tab-${name}`).addEventListener("click", () => switchTo(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      event.stopPropagation();
      const other = tabs.find((tab) => tab !== name);
      switchTo(other);
      $(`tab-${other}`).focus();
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, summary")) return;
    const player = state.tab === "watch" ? watch : reading, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === " " && event.target.closest("button")) return; // it presses the button
    const keys = {
      " ": () => player.toggle(),
      ArrowLeft: () => player.seek(player.shown - 1),
      ArrowRight: () => player.seek(player.shown + 1),
      Home: () => player.seek(0),
      End: () => player.seek(steps),
      ...(state.tab === "watch" && {
        n: newSeed,
        r: again,
        b: () => change({ pixels: state.pixels === "binary" ? "probabilities" : "binary" }),
        w: () => change({ windows: !state.windows }),
        Escape: () => state.open !== null && openCanvas(null),
      }),
    };
    if (!Object.hasOwn(keys, key) || (state.tab === "show" && $("reading").hidden)) return;
    event.preventDefault();
    keys[key]();
  });

  // What the worker sends

  worker.onmessage = ({ data }) => {
    if (data.error) fail(`The model could not be computed: ${data.error}`);
    if (data.glimpse) {
      const player = data.glimpse.kind === "draw" ? watch : reading;
      if (data.glimpse.id === player.job) player.add(data.glimpse);
    }
    if (data.gif) {
      $("save-gif").disabled = false;
      download(new Blob([data.gif.bytes], { type: "image/gif" }), ".gif");
    }
  };

  /** Begins as the state says. */
  function begin() {
    showControls();
    pressExample();
    layOut();
    if (state.example !== null) pad.set(shownImages[state.example]);
    else if (state.picture !== null) pad.set(bitsFrom(state.picture, count));
    else pad.clear();
    if (state.tab === "watch") startWatch(state.t);
    startReading(state.tab === "show" ? state.t : null);
  }

  addEventListener("hashchange", () => {
    state = fromHash(location.hash, limits);
    begin();
  });
  new ResizeObserver(() => {
    layOut();
    watch.update();
    reading.update();
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    watch.update();
    reading.update();
  });
  begin();
  document.documentElement.dataset.ready = "";
}

main().catch((error) => fail(`The page could not start: ${error.message}`));
