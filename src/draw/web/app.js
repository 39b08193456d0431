/* The page: one state object, all of it in the address; the worker computes, view.js paints. */
import { tensorOf } from "./draw.js";
import { fromHash, toHash } from "./state.js";
import { $, fail } from "./common.js";
import { watchTab } from "./watch.js";
import { readingTab } from "./reading.js";
import { controls } from "./controls.js";

const TABS = ["watch", "show", "training"].filter((name) => $(name)); // an exported page has no training

/** The bytes of a base64 text. */
function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // browsers since 2025, several times as fast
  const decoded = atob(text), bytes = new Uint8Array(decoded.length);
  for (let i = 0; i < decoded.length; i++) bytes[i] = decoded.charCodeAt(i);
  return bytes;
}

/** The model's manifest and binary, and the worker: from within this page if it was exported, else from beside it. */
async function load() {
  if ($("manifest")) {
    const source = new Blob([$("worker-source").textContent], { type: "text/javascript" });
    const worker = new Worker(URL.createObjectURL(source)); // it starts while the weights are parsed and decoded
    if (document.readyState === "loading") await new Promise((done) => document.addEventListener("DOMContentLoaded", done));
    const bytes = fromBase64($("weights").textContent);
    $("weights").remove(); // the text is larger than what it holds
    return { manifest: JSON.parse($("manifest").textContent), buffer: bytes.buffer, worker };
  }
  const [manifest, weights] = await Promise.all([fetch("manifest.json"), fetch("weights.bin")]);
  if (!manifest.ok || !weights.ok) throw new Error("the server has no model to show");
  return { manifest: await manifest.json(), buffer: await weights.arrayBuffer(), worker: new Worker("worker.js", { type: "module" }) };
}

/** The state, and how it is kept in the address. */
function kept(limits) {
  const state = fromHash(location.hash, limits);
  let writing = 0;
  function remember() {
    clearTimeout(writing);
    writing = setTimeout(() => history.replaceState(null, "", toHash(state, limits) || "#"), 250); // Safari limits how often
  }
  return { state, limits, remember };
}

/** What the tabs share: the model's sizes and facts, the examples, the worker, the state and how it is kept. */
function shared({ manifest, buffer, worker }) {
  const { model: size, about, examples, latents } = manifest;
  const { channels, height, width, steps, read_n, write_n } = size;
  const count = channels * height * width;
  const shownImages = Array.from({ length: examples.count }, (_, k) =>
    Float64Array.from(new Uint8Array(buffer, examples.offset + k * count, count), (value) => value / 255));
  const pixels = channels === 1 && about.binary ? count : 0;
  const page = kept({ steps, examples: examples.count, pixels, latents, training: TABS.includes("training") }), { state, remember } = page;
  return {
    ...page, size, about, channels, steps, read_n, write_n, count, shownImages, labels: examples.labels, worker,
    canvas0: tensorOf(manifest, buffer, "canvas0").slice(),
    /** Keeps the glimpse of the tab that is open; one that was played to its end is played again. */
    keepT(tab, player) {
      if (state.tab !== tab) return;
      state.t = player.playing || player.settled ? null : player.t;
      remember();
    },
  };
}

function describe({ size, about, channels, steps, read_n, write_n }) {
  const facts = [
    ...new Set([$("models").hidden && about.name, about.data]), `${size.width} × ${size.height}${channels === 3 ? " RGB" : ""}`, `${steps} glimpses`,
    read_n === null ? "reads the whole image" : `reads ${read_n} × ${read_n}`,
    write_n === null ? "writes the whole canvas" : `writes ${write_n} × ${write_n}`,
    `${(about.parameters / 1e6).toPrecision(2)} M weights`,
    about.bound_nats && `validation bound ${about.bound_nats.toFixed(1)} nats`,
  ];
  const whole = facts.filter(Boolean).map((fact) => fact.replaceAll(" ", "\u00a0")); // lines break between facts, never in one
  $("about").textContent = whole.join("\u00a0· ");
  const through = write_n === null ? "over the whole canvas" : "through a window that it places itself";
  $("lead").textContent = `A recurrent network that draws, glimpse by glimpse, ${through}.`;
  document.title = `DRAW · ${about.name ?? "studio"}`;
  document.body.classList.toggle("rgb", channels === 3); // signed RGB is shown around grey, not in two colours
}

/** Links to the models of the server, each of which has a page of its own; it opens on the same tab. */
function links(models, here, { state, limits }) {
  $("models").hidden = false;
  $("models").replaceChildren(...models.map(([name, home]) => {
    const link = document.createElement("a");
    link.textContent = name;
    link.href = home;
    if (name === here) link.setAttribute("aria-current", "page");
    link.addEventListener("click", () => (link.href = home + toHash({ ...fromHash("", limits), tab: state.tab }, limits)));
    return link;
  }));
}

/** The tabs that compute with the model, and the worker that does it for them. */
function modelTabs(loaded, page) {
  const { worker } = page;
  worker.onerror = (event) => fail(`The model could not be computed: ${event.message ?? "the worker did not start"}. Load the page again.`);
  worker.postMessage({ load: { manifest: loaded.manifest, buffer: loaded.buffer } }, [loaded.buffer]);
  if (loaded.manifest.models) links(loaded.manifest.models, page.about.name, page);
  describe(page);
  const tabs = { watch: watchTab(page), show: readingTab(page) };
  worker.onmessage = ({ data }) => {
    if (data.error) fail(`The model could not be computed: ${data.error}`);
    if (data.gif) tabs.watch.gifDone(data.gif.bytes);
    if (!data.glimpse) return;
    const { player } = data.glimpse.kind === "draw" ? tabs.watch : tabs.show;
    if (data.glimpse.id === player.job) player.add(data.glimpse);
  };
  const control = controls(page, tabs.watch);
  keys(page, tabs, control);
  page.showControls = control.show;
  return tabs;
}

/** The same tabs of a server that has no model. */
function emptyTabs() {
  return Object.fromEntries(["watch", "show"].map((name) => {
    const words = document.createElement("p"), command = document.createElement("code");
    words.className = "empty";
    command.textContent = "draw serve MODEL --runs DIR";
    words.append("This server has no model. Begin it with one: ", command);
    $(name).replaceChildren(words);
    $(name).className = "alone";
    return [name, { begin() {}, layOut() {} }];
  }));
}

async function main() {
  const loaded = await load();
  const page = loaded.manifest ? shared(loaded) : kept({ steps: 1, examples: 0, pixels: 0, training: true, home: "training" });
  const { state } = page, tabs = loaded.manifest ? modelTabs(loaded, page) : emptyTabs();
  if (TABS.includes("training")) tabs.training = (await import("./training.js")).trainingTab(page);

  /** Shows the tab of the state. */
  function showTab() {
    for (const name of TABS) {
      const chosen = state.tab === name;
      $(name).hidden = !chosen;
      $(`tab-${name}`).setAttribute("aria-selected", chosen);
      $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
      if (!chosen) tabs[name].leave?.();
    }
    tabs[state.tab].layOut();
  }

  page.switchTo = (tab) => {
    if (state.tab === tab) return;
    const { player } = tabs[state.tab];
    if (player?.playing) player.seek(player.shown);
    state.tab = tab;
    showTab();
    if (tabs[tab].player?.job > 0) tabs[tab].player.update();
    else tabs[tab].begin(null);
    page.remember();
  };
  TABS.forEach((name, i) => {
    $(`tab-${name}`).addEventListener("click", () => page.switchTo(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      const other = TABS.at((i + by) % TABS.length);
      page.switchTo(other);
      $(`tab-${other}`).focus();
    });
  });

  function begin() {
    page.showControls?.();
    showTab();
    tabs[state.tab].begin(state.t);
  }
  addEventListener("hashchange", () => {
    Object.assign(state, fromHash(location.hash, page.limits));
    begin();
  });
  const again = () => {
    tabs[state.tab].layOut();
    tabs[state.tab].player?.update();
  };
  new ResizeObserver(again).observe(document.body);
  addEventListener("resize", again); // its height too
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  begin();
  document.documentElement.dataset.ready = "";
}

/** Keys that an input needs itself; of other types, all. */
const OWN = { range: /^(Arrow|Page|Home|End)/, radio: /^( |Arrow)/, checkbox: /^ $/ };

/** Keys that work wherever the focus is not on something that needs them itself. */
function keys({ state, steps, about }, tabs, { change, newSeed, again }) {
  document.addEventListener("keydown", (event) => {
    if (state.tab === "training" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, textarea, summary")) return;
    if (event.target.matches("input") && (OWN[event.target.type] ?? /./).test(event.key)) return;
    const { player } = tabs[state.tab], key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === " " && event.target.closest("button")) return; // it presses the button
    const actions = {
      " ": () => player.toggle(),
      ArrowLeft: () => player.seek(player.shown - 1),
      ArrowRight: () => player.seek(player.shown + 1),
      Home: () => player.seek(0),
      End: () => player.seek(steps),
      ...(state.tab === "watch" && {
        n: newSeed,
        r: again,
        b: () => about.binary && change({ pixels: state.pixels === "binary" ? "probabilities" : "binary" }),
        w: () => change({ windows: !state.windows }),
        Escape: () => state.open !== null && tabs.watch.open(null),
      }),
    };
    if (!Object.hasOwn(actions, key) || (state.tab === "show" && $("reading").hidden)) return;
    event.preventDefault();
    actions[key]();
  });
}

main().catch((error) => fail(`The page could not start: ${error.message}`));
