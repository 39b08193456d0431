/* DRAW's arithmetic in typed arrays: eqs. 1-16 of arXiv:1502.04623v2, the same as model.py, piece by piece.
 *
 * No DOM and no imports: it runs in a page, in a worker and under node. What a model is made of and how large it is
 * stands in the exported manifest alone. Weights are float32; everything computed is float64, so that the numbers are
 * those of Python to far below 1e-4. Axes are in the order b c h w, flattened; pixel i has its centre at i, from 0.
 */

export const FORMAT = 1;
export const WINDOW = 5; // values of a window: g_X, g_Y, delta, sigma2, gamma

const PIECES = {
  read: ["attentive", "full"],
  cell: ["lstm"],
  prior: ["standard_normal"],
  write: ["attentive", "full"],
  likelihood: ["bernoulli"],
};

/** A tensor of the model as float32: a view of `buffer`, or widened from float16. */
export function tensorOf(manifest, buffer, name) {
  const { shape, offset } = manifest.tensors[name], size = shape.reduce((a, b) => a * b, 1);
  if (manifest.weights === "float32") return new Float32Array(buffer, offset, size);
  const halves = new Uint16Array(buffer, offset, size), values = new Float32Array(size), bits = new Uint32Array(values.buffer);
  for (let i = 0; i < size; i++) {
    const magnitude = halves[i] & 0x7fff; // below 2 ** 10 it counts in steps of 2 ** -24, else the exponent is rebiased
    if (magnitude < 0x400) values[i] = magnitude * 2 ** -24;
    else bits[i] = (magnitude << 13) + (112 << 23);
    if (halves[i] & 0x8000) bits[i] |= 0x80000000;
  }
  return values;
}

/** The model that a manifest describes, its weights being views of `buffer` if they can. Throws an Error that names what is wrong. */
export function readModel(manifest, buffer) {
  if (manifest.format !== FORMAT) throw new Error(`the model's format is ${manifest.format}, this page reads ${FORMAT}`);
  for (const [piece, known] of Object.entries(PIECES)) {
    const kind = manifest.pieces[piece];
    if (!known.includes(kind)) throw new Error(`${piece} is ${kind}; this page knows ${known.join(", ")}`);
  }
  if (buffer.byteLength < manifest.bytes) throw new Error(`${manifest.bytes} bytes wanted, got ${buffer.byteLength}`);
  const { channels, height, width, steps, enc_size, dec_size, z_size, read_n, write_n } = manifest.model;
  const pixels = channels * height * width;

  const take = (name, ...shape) => {
    const entry = manifest.tensors[name];
    if (!entry || entry.shape.join() !== shape.join()) {
      throw new Error(`${name} is ${entry ? entry.shape.join(" x ") : "absent"}, wanted ${shape.join(" x ")}`);
    }
    return tensorOf(manifest, buffer, name);
  };
  const linear = (name, inputs, outputs) => ({
    weight: take(`${name}.weight`, outputs, inputs), bias: take(`${name}.bias`, outputs), inputs, outputs,
  });
  const cell = (name, inputs, size) => linear(`${name}.to_gates`, inputs + size, 4 * size);

  const read = manifest.pieces.read === "attentive"
    ? { n: read_n, features: 2 * channels * read_n ** 2, toWindow: linear("read.to_window", dec_size, WINDOW) }
    : { n: null, features: 2 * pixels };
  const write = manifest.pieces.write === "attentive"
    ? {
      n: write_n,
      toWindow: linear("write.to_window", dec_size, WINDOW),
      toPatch: linear("write.to_patch", dec_size, channels * write_n ** 2),
    }
    : { n: null, toStroke: linear("write.to_stroke", dec_size, pixels) };
  return {
    channels, height, width, steps, pixels, read, write, zSize: z_size,
    encoder: cell("encoder", read.features + dec_size, enc_size),
    toMu: linear("to_mu", enc_size, z_size),
    toLogSigma: linear("to_log_sigma", enc_size, z_size),
    decoder: cell("decoder", z_size, dec_size),
    initial: {
      hEnc: take("h_enc0", enc_size), sEnc: take("s_enc0", enc_size),
      hDec: take("h_dec0", dec_size), sDec: take("s_dec0", dec_size),
      canvas: take("canvas0", channels, height, width),
    },
  };
}

/** The learned state before the first glimpse, for b images. */
export function initialState(model, b) {
  const state = { b };
  for (const [name, value] of Object.entries(model.initial)) {
    state[name] = new Float64Array(b * value.length);
    for (let k = 0; k < b; k++) state[name].set(value, k * value.length);
  }
  return state;
}

/** One glimpse: inference and drawing of x (eqs. 3-8), or generation when x is null (eqs. 13-15).
 *
 * `state` is moved on in place; eps is standard normal noise (b, z); x holds intensities in [0, 1].
 * Returns every intermediate: canvas (logits, float32), xHat (the error image), readWindow, writeWindow, z and, in nats
 * per image, kl. What does not apply is null.
 */
export function step(model, state, eps, x = null) {
  const { b, hEnc, sEnc, hDec, sDec, canvas } = state;
  let xHat = null, readWindow = null, kl = null;
  let z = Float64Array.from(eps); // 13: the prior is N(0, I)
  if (x !== null) {
    xHat = new Float64Array(b * model.pixels);
    for (let i = 0; i < xHat.length; i++) xHat[i] = x[i] - sigmoid(canvas[i]); // 3
    let r;
    [r, readWindow] = read(model, x, xHat, hDec, b); // 4
    lstm(model.encoder, beside([r, hDec], b), hEnc, sEnc, b); // 5
    const mu = affine(model.toMu, hEnc, b), logSigma = affine(model.toLogSigma, hEnc, b); // 1, 2
    for (let i = 0; i < z.length; i++) z[i] = mu[i] + Math.exp(logSigma[i]) * eps[i]; // 6
    kl = new Float64Array(b);
    for (let i = 0; i < z.length; i++) {
      const k = Math.floor(i / model.zSize);
      kl[k] += 0.5 * (mu[i] ** 2 + Math.exp(2 * logSigma[i]) - 2 * logSigma[i] - 1); // 11
    }
  }
  lstm(model.decoder, z, hDec, sDec, b); // 7, 14
  const writeWindow = write(model, hDec, canvas, b); // 8, 15
  return { canvas: Float32Array.from(canvas), xHat, readWindow, writeWindow, z, kl };
}

/** -log D(x | canvas) of each image, nats (eq. 9). Never forms log(sigmoid(c)). */
export function lossX(x, canvas, b) {
  const losses = new Float64Array(b), pixels = x.length / b;
  for (let i = 0; i < x.length; i++) {
    const c = canvas[i];
    losses[Math.floor(i / pixels)] += Math.max(c, 0) + Math.log1p(Math.exp(-Math.abs(c))) - x[i] * c; // 9
  }
  return losses;
}

export function sigmoid(c) {
  return 1 / (1 + Math.exp(-c));
}

/** The square that window k covers in pictures: centre (g_X, g_Y), side (N - 1) delta, border sqrt(sigma2). */
export function rectangle(windows, k, n) {
  const [g_X, g_Y, delta, sigma2] = windows.subarray(k * WINDOW, (k + 1) * WINDOW);
  const half = ((n - 1) / 2) * delta;
  return { left: g_X - half, top: g_Y - half, right: g_X + half, bottom: g_Y + half, sigma: Math.sqrt(sigma2) };
}

// Noise: a function of its key alone, so that canvas 3 of a seed is the same among 4 canvases and among 36.

/** Uniform numbers in (0, 1) from sfc32 (C. Doty-Humphrey's small fast counting generator, as in PractRand), started
 * from three 32-bit numbers and a counter of 1, the first 12 results thrown away.
 */
export function uniforms(seed, index, purpose) {
  let a = seed | 0, b = index | 0, c = purpose | 0, counter = 1;
  const next = () => {
    const sum = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return ((sum >>> 0) + 0.5) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

/** `count` standard normal numbers, in pairs by Box and Muller: sqrt(-2 ln u) times cos and sin of 2 pi v. */
export function normals(count, seed, index, purpose) {
  const next = uniforms(seed, index, purpose);
  const values = new Float64Array(count + 1);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(next())), angle = 2 * Math.PI * next();
    values[i] = radius * Math.cos(angle);
    values[i + 1] = radius * Math.sin(angle);
  }
  return values.subarray(0, count);
}

/** What noise is for; the third part of its key. */
export const PURPOSE = { sample: 1, read: 2, pixels: 3 };

/** The noise of `images` images with the seed, all glimpses: (t, b, z). */
export function noise(model, images, seed, purpose) {
  const { steps, zSize } = model;
  const eps = new Float64Array(steps * images * zSize);
  for (let k = 0; k < images; k++) {
    const own = normals(steps * zSize, seed, k, purpose);
    for (let t = 0; t < steps; t++) eps.set(own.subarray(t * zSize, (t + 1) * zSize), (t * images + k) * zSize);
  }
  return eps;
}

// The parts.

/** W x + bias for b rows of x. Four rows at a time: each weight is fetched, and widened to float64, once for all four. */
function affine({ weight, bias, inputs, outputs }, x, b) {
  const y = new Float64Array(b * outputs);
  let k = 0;
  for (; k + 4 <= b; k += 4) {
    const x0 = x.subarray(k * inputs, (k + 1) * inputs), x1 = x.subarray((k + 1) * inputs, (k + 2) * inputs);
    const x2 = x.subarray((k + 2) * inputs, (k + 3) * inputs), x3 = x.subarray((k + 3) * inputs, (k + 4) * inputs);
    for (let o = 0, at = 0; o < outputs; o++) {
      let y0 = bias[o], y1 = y0, y2 = y0, y3 = y0;
      for (let i = 0; i < inputs; i++, at++) {
        const w = weight[at];
        y0 += w * x0[i];
        y1 += w * x1[i];
        y2 += w * x2[i];
        y3 += w * x3[i];
      }
      y[k * outputs + o] = y0;
      y[(k + 1) * outputs + o] = y1;
      y[(k + 2) * outputs + o] = y2;
      y[(k + 3) * outputs + o] = y3;
    }
  }
  for (; k < b; k++) {
    const row = x.subarray(k * inputs, (k + 1) * inputs);
    for (let o = 0, at = 0; o < outputs; o++, at += inputs) {
      let even = bias[o], odd = 0; // two sums: one would wait for itself at every addition
      let i = 0;
      for (; i + 2 <= inputs; i += 2) {
        even += weight[at + i] * row[i];
        odd += weight[at + i + 1] * row[i + 1];
      }
      if (i < inputs) even += weight[at + i] * row[i];
      y[k * outputs + o] = even + odd;
    }
  }
  return y;
}

/** Each image's features of several arrays (b, ...), one after the other. */
function beside(arrays, b) {
  const sizes = arrays.map((array) => array.length / b);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const joined = new Float64Array(b * total);
  for (let k = 0; k < b; k++) {
    let at = k * total;
    arrays.forEach((array, j) => {
      joined.set(array.subarray(k * sizes[j], (k + 1) * sizes[j]), at);
      at += sizes[j];
    });
  }
  return joined;
}

/** The recurrent cell; h and s are moved on in place. */
function lstm(toGates, input, h, s, b) {
  const size = h.length / b;
  const gates = affine(toGates, beside([input, h], b), b);
  for (let k = 0; k < b; k++) {
    for (let j = 0, at = 4 * k * size, to = k * size; j < size; j++, at++, to++) {
      const i = sigmoid(gates[at]), f = sigmoid(gates[at + size]);
      const g = Math.tanh(gates[at + 2 * size]), o = sigmoid(gates[at + 3 * size]);
      s[to] = f * s[to] + i * g;
      h[to] = o * Math.tanh(s[to]);
    }
  }
}

/** The windows (b, 5) that a head asks for (eqs. 21-24, pixels from 0). */
function windowsOf(toWindow, hDec, n, model, b) {
  const windows = affine(toWindow, hDec, b); // 21
  const { height, width } = model;
  for (let k = 0; k < b * WINDOW; k += WINDOW) {
    windows[k] = ((width + 1) / 2) * (windows[k] + 1) - 1; // 22
    windows[k + 1] = ((height + 1) / 2) * (windows[k + 1] + 1) - 1; // 23
    const sigma2 = Math.exp(windows[k + 2]);
    windows[k + 2] = ((Math.max(width, height) - 1) / Math.max(n - 1, 1)) * Math.exp(windows[k + 3]); // 24
    windows[k + 3] = sigma2;
    windows[k + 4] = Math.exp(windows[k + 4]);
  }
  return windows;
}

/** Gaussian filters (n, size) along one axis; every row sums to 1 (eqs. 19-20, 25-26).
 *
 * A softmax over pixels whose exponents are shifted by that of a0, the pixel nearest to mu; they are then at most 0,
 * and no square of a far centre is formed. See filterbank.py.
 */
export function axisFilters(center, delta, sigma2, n, size) {
  const F = new Float64Array(n * size);
  for (let i = 0; i < n; i++) {
    const mu = center + (i - (n - 1) / 2) * delta; // 19, 20
    const a0 = Math.min(Math.max(Math.round(mu), 0), size - 1);
    let sum = 0;
    for (let a = 0; a < size; a++) {
      sum += F[i * size + a] = Math.exp((-(a - a0) * (a + a0 - 2 * mu) * 0.5) / sigma2);
    }
    for (let a = 0; a < size; a++) F[i * size + a] /= sum; // 25, 26
  }
  return F;
}

/** Eq. 4: what the encoder sees of x and of the error image, and through which windows. */
function read(model, x, xHat, hDec, b) {
  const { read: { n, toWindow }, channels, height, width } = model;
  if (n === null) return [beside([x, xHat], b), null]; // 17
  const windows = windowsOf(toWindow, hDec, n, model, b);
  const r = new Float64Array(b * model.read.features), rows = new Float64Array(n * width);
  let to = 0;
  for (let k = 0; k < b; k++) {
    const [g_X, g_Y, delta, sigma2, gamma] = windows.subarray(k * WINDOW, (k + 1) * WINDOW);
    const F_X = axisFilters(g_X, delta, sigma2, n, width), F_Y = axisFilters(g_Y, delta, sigma2, n, height);
    for (const images of [x, xHat]) {
      for (let c = 0; c < channels; c++) {
        const from = (k * channels + c) * height * width;
        rows.fill(0); // F_Y x
        for (let i = 0; i < n; i++) {
          for (let y = 0; y < height; y++) {
            const weight = F_Y[i * height + y];
            for (let a = 0; a < width; a++) rows[i * width + a] += weight * images[from + y * width + a];
          }
        }
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < n; j++, to++) {
            let sum = 0;
            for (let a = 0; a < width; a++) sum += rows[i * width + a] * F_X[j * width + a];
            r[to] = gamma * sum; // 27
          }
        }
      }
    }
  }
  return [r, windows];
}

/** Eq. 8: adds the decoder's stroke to the canvas, in logits; returns the windows it went through. */
function write(model, hDec, canvas, b) {
  const { write: { n, toWindow, toPatch, toStroke }, channels, height, width } = model;
  if (n === null) {
    const stroke = affine(toStroke, hDec, b); // 18
    for (let i = 0; i < canvas.length; i++) canvas[i] += stroke[i];
    return null;
  }
  const windows = windowsOf(toWindow, hDec, n, model, b);
  const patch = affine(toPatch, hDec, b), rows = new Float64Array(n * width); // 28
  for (let k = 0; k < b; k++) {
    const [g_X, g_Y, delta, sigma2, gamma] = windows.subarray(k * WINDOW, (k + 1) * WINDOW);
    const F_X = axisFilters(g_X, delta, sigma2, n, width), F_Y = axisFilters(g_Y, delta, sigma2, n, height);
    for (let c = 0; c < channels; c++) {
      const from = (k * channels + c) * n * n, to = (k * channels + c) * height * width;
      rows.fill(0); // w F_X
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < n; j++) {
          const value = patch[from + i * n + j] / gamma;
          for (let a = 0; a < width; a++) rows[i * width + a] += value * F_X[j * width + a];
        }
      }
      for (let i = 0; i < n; i++) {
        for (let y = 0; y < height; y++) {
          const weight = F_Y[i * height + y];
          for (let a = 0; a < width; a++) canvas[to + y * width + a] += weight * rows[i * width + a]; // 29
        }
      }
    }
  }
  return windows;
}

/** The share of numbers that lie below `value`, in [0, 1], of numbers known by their values at even steps of rank. */
export function shareBelow(value, ranked) {
  const above = ranked.findIndex((other) => other >= value), last = ranked.length - 1;
  if (above <= 0) return above === 0 ? 0 : 1;
  return (above - 1 + (value - ranked[above - 1]) / (ranked[above] - ranked[above - 1])) / last;
}
