/* Play, pause and scrub: which glimpse of a drawing is shown, and the bars under the scrubber. */
import { bars } from "./view.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** The glimpses of one drawing as they come, and which of them is shown: t of 0, nothing yet, to the last. */
export class Player {
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
    const since = performance.now() - (from === 0 ? 1000 / this.speed() : 0); // the first stroke waits for nothing
    Object.assign(this, { t: from, playing: true, settled: false, since });
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
