/* The tab Watch: canvases drawn from a seed, all of them or one shown large. */
import { PURPOSE, rectangle, uniforms } from "./draw.js";
import { WRITE, drawnWith, fit, palette, picture, probability, sheet, show, signedPicture } from "./view.js";
import { $, say, thin } from "./common.js";
import { Player } from "./player.js";

/** Makes the tab; `page` holds what the tabs share (see app.js). */
export function watchTab(page) {
  const { size, steps, count, write_n, canvas0, channels, worker, state, remember } = page;
  const { width, height } = size;
  const watch = new Player($("watch-transport"), steps, () => state.speed, renderWatch);
  watch.changed = () => page.keepT("watch", watch);
  let cells = [], uniformOf = [];

  /** Draws what the state says, from the start or at glimpse t. */
  function begin(t) {
    uniformOf = [];
    const id = watch.begin(t);
    const { n, seed, temperature, latents } = state;
    worker.postMessage({ draw: { id, n, seed, temperature, latents } });
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
      const stacked = matchMedia("(max-width: 800px)").matches; // the controls lie below, and a canvas may fill the screen
      const tall = Math.max(240, innerHeight - (stacked ? 60 : 245)) * (width / height);
      for (const canvas of cells) fit(canvas, size, (Math.min(stage, tall) - 6 * (columns - 1)) / columns);
      const pair = Math.min((stage - 12) / 2, Math.max(200, tall - 80));
      for (const id of ["large-canvas", "large-stroke"]) fit($(id), size, pair);
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

  /** The colours of the canvases in the middle and at the end, for an animation of RGB. */
  function colours() {
    if (channels === 1) return palette(null);
    const few = [Math.ceil(steps / 2), steps].flatMap((t) => cells.slice(0, 16).map((_, k) => cellAt(t, k, false).image.data));
    const bytes = new Uint8Array(few.reduce((sum, { length }) => sum + length, 0));
    few.reduce((from, data) => (bytes.set(data, from), from + data.length), 0);
    return palette(bytes);
  }

  let animations = 0;
  $("save-gif").addEventListener("click", async () => {
    if (watch.glimpses.length < steps) return say("Still drawing: try again when the last glimpse is there.");
    $("save-gif").disabled = true;
    const view = () => [watch.job, state.n, state.open, state.pixels].join();
    const begun = view(), id = ++animations, pace = Math.max(2, Math.round(100 / state.speed));
    for (let frame = 0; frame <= steps + 1; frame++) {
      const canvas = sheetAt(Math.min(frame, steps), state.windows && frame <= steps, 480);
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const start = frame === 0 ? { width: canvas.width, height: canvas.height, palette: colours() } : {};
      const message = { id, rgba: data, hundredths: frame > steps ? 200 : pace, end: frame > steps, ...start };
      worker.postMessage({ gif: message }, [data.buffer]);
      await new Promise((resolve) => setTimeout(resolve, 0));
      if (view() === begun) continue;
      $("save-gif").disabled = false;
      return say("Not saved: the view was changed.");
    }
  });

  /** The worker has finished the animation. */
  function gifDone(bytes) {
    $("save-gif").disabled = false;
    download(new Blob([bytes], { type: "image/gif" }), ".gif");
  }

  return { player: watch, begin, layOut, open: openCanvas, gifDone };
}
