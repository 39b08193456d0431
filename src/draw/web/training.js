/* The tab Training: the runs in a folder, told by the server while they train (see live.py). */
import { $, say } from "./common.js";
import { plot } from "./plot.js";

const COLOURS = 8; // in style.css
const COLUMN = { bound: 2, loss_x: 3, loss_z: 4 }; // of a point: step, seconds, bound, loss_x, loss_z
const CURVE = { bound: "Bound", loss_x: "Reconstruction cost", loss_z: "Latent cost" };
const MEANING = {
  bound: ", lower is better", loss_x: ", lower is better", loss_z: ": what the latents tell of an image; it rises while a network learns to use them",
};
const AGAIN = 5000; // milliseconds after which a server that refused is asked again

const whole = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });

/** How long something will take, roughly. */
function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return "less than a minute";
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Makes the tab; `page` holds the state and how it is kept (see app.js). */
export function trainingTab(page) {
  const { state, remember } = page;
  const runs = new Map(); // by name, each with all its points
  const items = new Map(); // by name, the elements that show a run
  let source = null, cursor = null, drawing = 0, again = 0, told = false;

  // What the server says

  function connect() {
    clearTimeout(again);
    if (source) return;
    source = new EventSource("events");
    source.onopen = () => ($("connection").textContent = "Live: the page follows the training.");
    source.addEventListener("runs", ({ data }) => listed(JSON.parse(data)));
    source.addEventListener("run", ({ data }) => changed(JSON.parse(data)));
    source.onerror = () => {
      $("connection").textContent = "The server does not answer. Is draw serve still running? Trying again…";
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      disconnect();
      again = setTimeout(connect, AGAIN);
    };
  }

  function disconnect() {
    clearTimeout(again);
    source?.close();
    source = null;
  }

  function listed({ folder, names }) {
    told = true;
    $("folder").textContent = folder;
    for (const name of [...runs.keys()].filter((name) => !names.includes(name))) {
      runs.delete(name);
      items.get(name).item.remove();
      items.delete(name);
    }
    draw();
  }

  function changed(run) {
    const before = runs.get(run.name);
    if (!run.anew) {
      run.train = [...before.train, ...run.train];
      run.valid = [...before.valid, ...run.valid];
    }
    run.slot = before?.slot ?? freeSlot();
    runs.set(run.name, run);
    if (before && before.state !== run.state) say(`${run.name}: ${run.state}`);
    draw();
  }

  /** The first colour that no other run has. */
  function freeSlot() {
    const taken = new Set([...runs.values()].map(({ slot }) => slot));
    const free = Array.from({ length: COLOURS }, (_, slot) => slot).find((slot) => !taken.has(slot));
    return free ?? runs.size % COLOURS;
  }

  // What is shown

  /** Shows everything at the next frame. */
  function draw() {
    drawing ||= requestAnimationFrame(() => {
      drawing = 0;
      const sorted = [...runs.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
      $("training-empty").hidden = sorted.length > 0 || !told;
      $("plot").hidden = $("run-panel").hidden = sorted.length === 0;
      sorted.forEach((run, i) => {
        const { item } = (items.has(run.name) ? items : items.set(run.name, itemOf(run))).get(run.name);
        if ($("runs").children[i] !== item) $("runs").insertBefore(item, $("runs").children[i] ?? null);
        showItem(run);
      });
      showCurves(sorted.filter(({ name }) => !state.hide.includes(name)));
      showSheet(sorted);
    });
  }

  function showCurves(chosen) {
    const across = state.axis === "steps" ? (point) => point[0] : (point) => point[1] / 60;
    const points = (curve) => curve.map((point) => [across(point), point[COLUMN[state.curve]]]);
    const lines = chosen.map(({ name, slot, train, valid }) => ({ name, slot, train: points(train), valid: points(valid) }))
      .filter(({ train, valid }) => train.length + valid.length);
    const svg = $("curves");
    const label = state.axis === "steps" ? "training steps" : "minutes of training";
    const ends = lines.map(({ name, train, valid }) => `${name} ${(train.length ? train : valid).at(-1)[1].toFixed(1)}`);
    $("curves-meaning").textContent = MEANING[state.curve];
    svg.setAttribute("aria-label", `${CURVE[state.curve]} in nats over ${label}; now ${ends.join(", ") || "nothing to show"}`);
    if (!svg.clientWidth || lines.length === 0) return svg.replaceChildren();
    const read = plot(svg, lines, { label, cursor });
    const at = (x) => (state.axis === "steps" ? `step ${whole(x)}` : `${x.toFixed(1)} min`);
    const text = read.map(({ name, x, y }) => `${name} ${y.toFixed(1)} at ${at(x)}`).join(" · ");
    if ($("readout").textContent !== text) $("readout").textContent = text;
  }

  /** The elements that show a run. */
  function itemOf({ name, slot }) {
    const make = (tag, attributes, ...children) => {
      const element = Object.assign(document.createElement(tag), attributes);
      element.append(...children);
      return element;
    };
    const check = make("input", { type: "checkbox" });
    const badge = make("span", { className: "badge" }), progress = make("progress", { max: 1 });
    const samples = make("button", { type: "button", textContent: "Samples" });
    const facts = make("p", { className: "hint" }), error = make("p", { className: "fault" });
    const label = make("label", {}, check, make("span", { className: "swatch" }), make("span", { textContent: name }));
    check.addEventListener("change", () => {
      state.hide = state.hide.filter((other) => other !== name).concat(check.checked ? [] : [name]);
      remember();
      draw();
    });
    samples.setAttribute("aria-label", `Samples of ${name}`);
    samples.addEventListener("click", () => {
      state.run = name;
      remember();
      draw();
    });
    const item = make("li", { className: `run-${slot}` }, make("div", { className: "row" }, label, badge), progress, make("div", { className: "row" }, facts, samples), error);
    return { item, check, badge, progress, samples, facts, error };
  }

  function showItem(run) {
    const { check, badge, progress, samples, facts, error } = items.get(run.name);
    check.checked = !state.hide.includes(run.name);
    badge.textContent = run.state;
    badge.className = `badge ${run.state}`;
    progress.value = run.fraction;
    progress.setAttribute("aria-label", `${run.name}: ${Math.floor(100 * run.fraction)} % of its schedule`);
    const left = run.state === "training" && run.seconds_left !== null && `${duration(run.seconds_left)} left`;
    const done = run.state === "stopped" && `${Math.floor(100 * run.fraction)} % done`;
    const best = run.best !== null && `best ${run.best.toFixed(1)} nats`;
    facts.textContent = [`step ${whole(run.step)}`, best, left || done].filter(Boolean).join(" · ");
    samples.hidden = run.sheet === null;
    error.textContent = run.error;
    error.hidden = !run.error;
  }

  /** The newest samples of the run that was chosen, else of the one that trains, else of any. */
  function showSheet(sorted) {
    const with_ = sorted.filter(({ sheet }) => sheet !== null);
    const run = with_.find(({ name }) => name === state.run) ?? with_.find((run) => run.state === "training") ?? with_[0];
    $("sheet").hidden = !run;
    for (const [name, { samples }] of items) samples.setAttribute("aria-pressed", name === run?.name);
    if (!run) return;
    const image = $("sheet").querySelector("img"), address = `samples/${encodeURIComponent(run.name)}/${run.sheet}.png`;
    if (image.getAttribute("src") === address) return;
    image.src = image.parentElement.href = address;
    image.alt = `64 samples of ${run.name} after step ${whole(run.sheet)}; open it at full size`;
    $("sheet").querySelector("figcaption").textContent = `${run.name}, samples after step ${whole(run.sheet)}`;
  }

  // What the user does

  const radios = ["curve", "axis"].flatMap((name) => [...document.getElementsByName(name)]);
  for (const radio of radios) {
    radio.addEventListener("change", () => {
      state[radio.name] = radio.value;
      remember();
      draw();
    });
  }
  const svg = $("curves");
  const read = (to) => {
    cursor = to === null ? null : Math.min(Math.max(to, 0), 1);
    draw();
  };
  const area = () => svg.querySelector(".axis")?.getBoundingClientRect();
  const readAt = ({ clientX }) => area() && read((clientX - area().left) / area().width);
  svg.addEventListener("pointermove", readAt);
  svg.addEventListener("pointerdown", readAt);
  svg.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && read(null)); // what a finger reads stays
  svg.addEventListener("blur", () => read(null));
  svg.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: (cursor ?? 1) - 0.02, ArrowRight: (cursor ?? 0) + 0.02, Home: 0, End: 1, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    read(to);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) disconnect(); // a browser has few connections to a server, and other tabs need them
    else if (state.tab === "training") connect();
  });

  return {
    layOut: draw,
    /** Shows what the state says, and follows the server. */
    begin() {
      for (const radio of radios) radio.checked = state[radio.name] === radio.value;
      connect();
      draw();
    },
    leave: disconnect,
  };
}
