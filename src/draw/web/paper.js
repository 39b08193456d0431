/* The sheet to draw on: an image-sized canvas whose pixels are exactly what the model is shown. */

/** Makes `canvas` a sheet; `changed()` is called after every change by hand.
 *
 * `binary` sheets hold 0 and 1 only; `blank` is the intensity of an empty one.
 */
export function paper(canvas, { channels, height, width }, { binary, blank, tool, cursor, changed }) {
  const plane = height * width, radius = Math.max(0.6, 0.042 * Math.min(height, width));
  const pixels = new Float64Array(channels * plane).fill(blank);
  // Of the stroke at hand: what lay under it, and how much of each pixel it covers, however often it passes.
  const under = new Float64Array(channels * plane), covered = new Float64Array(plane);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let at = [width / 2 - 0.5, height / 2 - 0.5], down = false; // the pen, in pixels; pixel i has its centre at i
  let pointer = null; // the finger, pen or mouse that draws

  function repaint() {
    const image = context.createImageData(width, height);
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * pixels[(channels === 3 ? c : 0) * plane + i]);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function beginStroke() {
    under.set(pixels);
    covered.fill(0);
  }

  /** Ink along the line between two points; the edge of a stroke is soft where pixels may be grey. */
  function stroke([x0, y0], [x1, y1]) {
    const colour = tool(), length = (x1 - x0) ** 2 + (y1 - y0) ** 2;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const along = length ? Math.min(Math.max(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0), 1) : 0;
        const distance = Math.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0));
        let cover = Math.min(Math.max(radius + 0.5 - distance, 0), 1);
        if (binary) cover = cover >= 0.5 ? 1 : 0;
        if (cover <= covered[y * width + x]) continue;
        covered[y * width + x] = cover;
        for (let c = 0; c < channels; c++) {
          const i = c * plane + y * width + x, ink = colour === null ? blank : colour[c];
          pixels[i] = under[i] + cover * (ink - under[i]);
        }
      }
    }
    repaint();
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width - 0.5, ((event.clientY - box.top) / box.height) * height - 0.5];
  };
  canvas.addEventListener("mousedown", (event) => event.preventDefault()); // no focus: arrow keys go on scrubbing
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || pointer !== null) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    at = place(event);
    beginStroke();
    stroke(at, at);
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const to = place(each);
      stroke(at, to);
      at = to;
    }
    changed();
  });

  canvas.addEventListener("lostpointercapture", (event) => {
    if (event.pointerId === pointer) pointer = null;
  });

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function mark() {
    cursor.style.left = `${((at[0] + 0.5) / width) * canvas.clientWidth}px`;
    cursor.style.top = `${((at[1] + 0.5) / height) * canvas.clientHeight}px`;
    cursor.classList.toggle("down", down);
  }
  canvas.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if ((!move && event.key !== " " && event.key !== "Enter") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Enter") down = !down;
    if (!move) beginStroke();
    const from = move ? at : [...at];
    if (move) {
      const limit = (value, size) => Math.min(Math.max(value, 0), size - 1);
      at = [limit(Math.round(at[0] + move[0]), width), limit(Math.round(at[1] + move[1]), height)];
    }
    if (event.key === " " || down) {
      stroke(from, at);
      changed();
    }
    mark();
  });
  canvas.addEventListener("focus", mark);
  canvas.addEventListener("blur", () => (down = false));

  /** All of the sheet is new. */
  function replaced() {
    beginStroke();
    repaint();
  }
  replaced();

  return {
    pixels,
    set(values) {
      pixels.set(values);
      replaced();
    },
    clear() {
      pixels.fill(blank);
      replaced();
    },
    invert() {
      pixels.forEach((value, i) => (pixels[i] = 1 - value));
      replaced();
    },
    isBlank: () => pixels.every((value) => value === blank),
    /** Shows an image, its middle cut to this shape. Dark ink on light paper is turned to what grey models know. */
    async load(blob) {
      const source = await createImageBitmap(blob);
      const scale = Math.max(width / source.width, height / source.height);
      context.imageSmoothingQuality = "high";
      context.clearRect(0, 0, width, height);
      const [w, h] = [source.width * scale, source.height * scale];
      context.drawImage(source, (width - w) / 2, (height - h) / 2, w, h);
      const { data } = context.getImageData(0, 0, width, height);
      const alpha = Float64Array.from({ length: plane }, (_, i) => data[4 * i + 3] / 255);
      if (channels === 3) { // what is transparent is black, as in training
        for (let i = 0; i < 3 * plane; i++) pixels[i] = (alpha[i % plane] * data[4 * (i % plane) + Math.floor(i / plane)]) / 255;
      } else {
        const ink = Float64Array.from(alpha, (_, i) => (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]) / 255);
        const sum = (values) => values.reduce((sofar, value) => sofar + value, 0);
        const behind = sum(ink.map((value, i) => alpha[i] * value)) > sum(alpha) / 2 ? 0 : 1; // a ground for what is transparent
        const grey = ink.map((value, i) => alpha[i] * value + (1 - alpha[i]) * behind);
        const edge = grey.filter((_, i) => i < width || i >= plane - width || i % width === 0 || i % width === width - 1);
        const light = blank < 0.5 && sum(edge) / edge.length > 0.5;
        const lowest = Math.min(...grey), highest = Math.max(...grey), plain = highest - lowest < 0.02; // nothing on it
        pixels.set(grey.map((value) => {
          const shown = !binary ? value : Number(plain ? light : value > (lowest + highest) / 2);
          return light ? 1 - shown : shown;
        }));
      }
      replaced();
    },
  };
}
