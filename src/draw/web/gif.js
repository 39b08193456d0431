/* An animated GIF89a, frame by frame. No DOM. */

/** Starts an animation of the given size whose colours are all in `palette`, or near them: at most 256 [r, g, b]. */
export function gifWriter(width, height, palette) {
  const bits = Math.max(2, Math.ceil(Math.log2(palette.length)));
  const out = [];
  const short = (value) => out.push(value & 255, (value >> 8) & 255);
  const text = (value) => out.push(...[...value].map((letter) => letter.charCodeAt(0)));
  text("GIF89a");
  short(width);
  short(height);
  out.push(0x80 | 0x70 | (bits - 1), 0, 0); // a global palette
  for (let i = 0; i < 1 << bits; i++) out.push(...(palette[i] ?? [0, 0, 0]));
  out.push(0x21, 0xff, 11);
  text("NETSCAPE2.0");
  out.push(3, 1, 0, 0, 0); // repeat for ever
  const indexOf = nearestIn(palette);
  return {
    /** A frame of RGBA bytes, shown for so many hundredths of a second. */
    add(rgba, hundredths) {
      out.push(0x21, 0xf9, 4, 4);
      short(hundredths);
      out.push(0, 0, 0x2c, 0, 0, 0, 0);
      short(width);
      short(height);
      out.push(0, bits);
      const data = compress(indexOf(rgba), bits);
      for (let at = 0; at < data.length; at += 255) {
        const block = data.subarray(at, at + 255);
        out.push(block.length, ...block);
      }
      out.push(0);
    },
    bytes() {
      return Uint8Array.from([...out, 0x3b]);
    },
  };
}

/** Up to `count` colours [r, g, b] for RGBA bytes, by median cut: the box of colours that is widest along one channel is
 * halved at its median there, again and again; each box gives its mean.
 */
export function adaptedPalette(rgba, count) {
  const box = (pixels) => {
    const widths = [0, 1, 2].map((c) => {
      let least = 255, most = 0;
      for (const i of pixels) {
        least = Math.min(least, rgba[4 * i + c]);
        most = Math.max(most, rgba[4 * i + c]);
      }
      return most - least;
    });
    const width = Math.max(...widths);
    return { pixels, width, channel: widths.indexOf(width) };
  };
  const boxes = [box(Uint32Array.from({ length: rgba.length / 4 }, (_, i) => i))];
  while (boxes.length < count) {
    const widest = boxes.reduce((best, each, i) => (each.width > boxes[best].width ? i : best), 0);
    const { pixels, width, channel } = boxes[widest];
    if (width === 0) break;
    pixels.sort((i, j) => rgba[4 * i + channel] - rgba[4 * j + channel]);
    boxes.splice(widest, 1, box(pixels.subarray(0, pixels.length >> 1)), box(pixels.subarray(pixels.length >> 1)));
  }
  return boxes.map(({ pixels }) =>
    [0, 1, 2].map((c) => Math.round(pixels.reduce((sum, i) => sum + rgba[4 * i + c], 0) / pixels.length)));
}

/** From RGBA bytes to indices of the nearest colours. */
function nearestIn(palette) {
  const known = new Map();
  const search = (r, g, b) => {
    let best = 0, least = Infinity;
    palette.forEach((colour, i) => {
      const distance = (colour[0] - r) ** 2 + (colour[1] - g) ** 2 + (colour[2] - b) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  };
  return (rgba) => {
    const indices = new Uint8Array(rgba.length / 4);
    let last = -1, index = 0;
    for (let i = 0; i < indices.length; i++) {
      const colour = (rgba[4 * i] << 16) | (rgba[4 * i + 1] << 8) | rgba[4 * i + 2];
      if (colour !== last) { // neighbours are mostly equal
        last = colour;
        index = known.get(colour) ?? -1;
        if (index < 0) known.set(colour, (index = search(colour >> 16, (colour >> 8) & 255, colour & 255)));
      }
      indices[i] = index;
    }
    return indices;
  };
}

/** GIF's LZW: codes of growing length, packed from the lowest bit; at 4096 codes the dictionary begins anew. */
function compress(indices, bits) {
  const clear = 1 << bits, end = clear + 1;
  const out = new Uint8Array(indices.length * 2 + 16);
  const next = new Uint16Array(4096 << bits); // of a code and an index: the code of both, 0 for none
  let at = 0, held = 0, count = 0, size = bits + 1, free = end + 1;
  const put = (code) => {
    held |= code << count;
    for (count += size; count >= 8; count -= 8, held >>>= 8) out[at++] = held & 255;
  };
  put(clear);
  let code = indices[0];
  for (let i = 1; i < indices.length; i++) {
    const longer = (code << bits) | indices[i];
    if (next[longer]) {
      code = next[longer];
      continue;
    }
    put(code);
    if (free === 4096) {
      put(clear);
      next.fill(0);
      free = end + 1;
      size = bits + 1;
    } else {
      if (free === 1 << size) size++;
      next[longer] = free++;
    }
    code = indices[i];
  }
  put(code);
  put(end);
  if (count > 0) out[at++] = held & 255;
  return out.subarray(0, at);
}
