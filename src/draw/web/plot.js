/* Curves as SVG. It knows lines and axes, and nothing of runs or of the page's state. */

const LEFT = 48, TOP = 14, BOTTOM = 40, APART = 15, NAME = 150; // pixels; lines of text are APART, a name is at most NAME long

/** An SVG element with its attributes. */
function make(name, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/** Round numbers, about `count` of them, between two. */
export function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const pitch = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / pitch); i * pitch <= high; i++) found.push(Number((i * pitch).toPrecision(12)));
  return found;
}

/** The mean of each value and its neighbours, a fiftieth of all, as in curves.py. */
export function smooth(values) {
  const reach = Math.floor(values.length / 100), last = values.length - 1;
  const at = (i) => values[Math.min(Math.max(i, 0), last)];
  let sum = 0;
  for (let i = -reach; i <= reach; i++) sum += at(i);
  return values.map((_, i) => {
    const mean = sum / (2 * reach + 1);
    sum += at(i + reach + 1) - at(i - reach);
    return mean;
  });
}

/** The range of values worth showing: without the spike of the first steps, a tenth of all, and single faults. */
export function range(lines) {
  const ends = lines.flatMap(({ train, valid }) => [train, valid]).filter((points) => points.length).map((points) => {
    const sorted = points.map(([, y]) => y).sort((a, b) => a - b), at = (part) => sorted[Math.round(part * (sorted.length - 1))];
    return [at(0.02), at(0.9)];
  });
  const bottom = Math.min(...ends.map(([low]) => low)), top = Math.max(...ends.map(([, high]) => high));
  const room = 0.08 * (top - bottom) || 1;
  return [bottom - room, top + room];
}

/** The point nearest to x. */
function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
}

/** Draws lines {name, slot, train: [[x, y], ...], valid} into an SVG that has a size; gives what stands at `cursor`.
 *
 * `slot` chooses a line's colour. `cursor`, from 0 to 1 along the horizontal axis, or null, marks the values there.
 */
export function plot(svg, lines, { label, cursor }) {
  const width = svg.clientWidth, height = svg.clientHeight, wide = width > 480;
  const longest = Math.max(...lines.map(({ name }) => Math.min(name.length, 20)));
  const right = wide ? 16 + 7.2 * longest : 12; // on a phone the list names the lines
  const most = Math.max(...lines.flatMap(({ train, valid }) => [...train, ...valid].map(([x]) => x)), 1e-9);
  const [low, high] = range(lines);
  const X = (x) => LEFT + (x / most) * (width - LEFT - right);
  const Y = (y) => height - BOTTOM - ((y - low) / (high - low)) * (height - BOTTOM - TOP);
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
  const parts = [];

  for (const y of ticks(low, high, 5)) {
    parts.push(make("line", { class: "rule", x1: LEFT, x2: width - right, y1: Y(y), y2: Y(y) }));
    parts.push(make("text", { x: LEFT - 8, y: Y(y) + 4, "text-anchor": "end" }, y.toLocaleString("en")));
  }
  for (const x of ticks(0, most, wide ? 6 : 4)) {
    parts.push(make("text", { x: X(x), y: height - BOTTOM + 18, "text-anchor": "middle" }, x.toLocaleString("en")));
  }
  parts.push(make("line", { class: "axis", x1: LEFT, x2: width - right, y1: height - BOTTOM, y2: height - BOTTOM }));
  parts.push(make("text", { x: (LEFT + width - right) / 2, y: height - 4, "text-anchor": "middle" }, label));

  const inside = make("g", { "clip-path": "url(#inside)" }), clip = make("clipPath", { id: "inside" });
  clip.append(make("rect", { x: LEFT - 5, y: TOP - 5, width: width - LEFT - right + 10, height: height - TOP - BOTTOM + 5 }));
  const ends = [], read = [], x = cursor * most;
  for (const { name, slot, train, valid } of lines) {
    const group = make("g", { class: `run-${slot}` }), means = smooth(train.map(([, y]) => y));
    group.append(make("path", { class: "raw", d: path(train) }), make("path", { d: path(train.map(([x], i) => [x, means[i]])) }));
    for (const [x, y] of valid) group.append(make("circle", { cx: X(x), cy: Y(y), r: valid.length > 60 ? 2 : 3 }));
    const points = train.length ? train : valid;
    if (points.length) ends.push({ name, slot, y: Y(train.length ? means.at(-1) : points.at(-1)[1]), x: X(points.at(-1)[0]) });
    if (cursor !== null && points.length && x <= points.at(-1)[0] + most / 50) {
      const [at, y] = nearest(points, x);
      group.append(make("circle", { class: "mark", cx: X(at), cy: Y(y), r: 4 }));
      read.push({ name, x: at, y });
    }
    inside.append(group);
  }
  if (cursor !== null) inside.append(make("line", { class: "axis", x1: X(x), x2: X(x), y1: TOP, y2: height - BOTTOM }));
  parts.push(clip, inside);

  if (wide) parts.push(...names(ends, height));
  svg.replaceChildren(...parts);
  return read;
}

/** The lines' names beside their ends, moved apart where they would overlap. */
function names(ends, height) {
  ends.sort((a, b) => a.y - b.y);
  const beside = (one, other) => Math.abs(one.x - other.x) < NAME;
  ends.forEach((end, i) => (end.y = Math.max(end.y, TOP, ...ends.slice(0, i).filter((other) => beside(end, other)).map(({ y }) => y + APART))));
  ends.sort((a, b) => a.y - b.y);
  for (let i = ends.length - 1; i >= 0; i--) {
    const below = ends.slice(i + 1).filter((other) => beside(ends[i], other)).map(({ y }) => y - APART);
    ends[i].y = Math.min(ends[i].y, height - BOTTOM, ...below);
  }
  return ends.map(({ name, slot, x, y }) =>
    make("text", { class: `run-${slot} name`, x: x + 10, y: y + 4 }, name.length > 20 ? `${name.slice(0, 19)}…` : name));
}
