// Pixels as in training: transparent ones on a background, resized as Pillow resizes, and the occlusion map.
// It needs no document, so the tests run it in node beside Pillow.

const PRECISION = 22; // bits of Pillow's fixed-point weights

/**
 * The weights of Pillow's antialiased bilinear filter along one axis: the first pixel and the integers for each.
 * Of `from` pixels those between `low` and `high` are resized, which may be fractions.
 */
function weightsOf({ from, to, low, high }) {
  const scale = Math.fround(high - low) / to; // Pillow has the ends as float32
  const width = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const center = low + (index + 0.5) * scale;
    const start = Math.max(Math.trunc(center - width + 0.5), 0);
    const end = Math.min(Math.trunc(center + width + 0.5), from);
    const shares = [];
    let sum = 0;
    for (let at = start; at < end; at++) {
      const share = Math.max(1 - Math.abs((at - center + 0.5) * (1 / width)), 0);
      shares.push(share);
      sum += share;
    }
    return { start, weights: Int32Array.from(shares, (share) => Math.trunc((share / sum) * 2 ** PRECISION + 0.5)) };
  });
}

/** Resize along one axis: `lines` lines, pixels `stride` apart, lines `step` apart. */
function stretch(source, target, count, lines, from, to) {
  weightsOf(count).forEach(({ start, weights }, index) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (PRECISION - 1);
        let at = line * from.line + start * from.pixel + channel;
        for (const weight of weights) {
          sum += source[at] * weight;
          at += from.pixel;
        }
        target[line * to.line + index * to.pixel + channel] = sum >> PRECISION; // a clamped array: 0 to 255
      }
    }
  });
  return target;
}

function stretchWidth(rgb, width, height, to, low, high) {
  if (width === to && high - low === width) return rgb;
  const target = new Uint8ClampedArray(to * height * 3);
  const count = { from: width, to, low, high };
  return stretch(rgb, target, count, height, { line: width * 3, pixel: 3 }, { line: to * 3, pixel: 3 });
}

function stretchHeight(rgb, width, height, to, low, high) {
  if (height === to && high - low === height) return rgb;
  const axis = { line: 3, pixel: width * 3 };
  return stretch(rgb, new Uint8ClampedArray(width * to * 3), { from: height, to, low, high }, width, axis, axis);
}

/** The largest part of the middle with a new aspect: left, upper, right and lower end, as ImageOps.fit has it. */
function middle(width, height, toWidth, toHeight) {
  const [own, aspect] = [width / height, toWidth / toHeight];
  const partWidth = own > aspect ? aspect * height : width;
  const partHeight = own < aspect ? width / aspect : height;
  const [left, upper] = [(width - partWidth) * 0.5, (height - partHeight) * 0.5];
  return [left, upper, left + partWidth, upper + partHeight].map(Math.fround);
}

/** Resize along one axis between the two nearest pixels, without antialiasing; the strides are as for `stretch`. */
function interpolate(source, { from, to }, lines, strides, target) {
  const values = new Float32Array(lines * to * 3);
  for (let index = 0; index < to; index++) {
    const center = (index + 0.5) * (from / to) - 0.5;
    const low = Math.floor(center);
    const [first, second] = [low, low + 1].map((at) => Math.min(Math.max(at, 0), from - 1) * strides.pixel);
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        const at = line * strides.line + channel;
        const difference = source[at + second] - source[at + first];
        values[line * target.line + index * target.pixel + channel] = source[at + first] + difference * (center - low);
      }
    }
  }
  return values;
}

/**
 * Resize RGB pixels, 3 bytes each, to a size; equal to Image.resize(size, BILINEAR) of Pillow 13, bit by bit, or with
 * the fit "crop" to ImageOps.fit(image, size, BILINEAR); with the fit "keras" without antialiasing, as data/pictures.py.
 *
 * Pillow rounds between the two axes. Since version 13 it begins with the height where that shrinks much more; earlier
 * versions begin with the width, and differ by a gray level in such pictures.
 */
export function resize(rgb, width, height, toWidth, toHeight, fit = "stretch") {
  if (fit === "keras") {
    const rows = { line: 3, pixel: width * 3 };
    const short = interpolate(rgb, { from: height, to: toHeight }, width, rows, rows);
    const [wide, narrow] = [width, toWidth].map((count) => ({ line: count * 3, pixel: 3 }));
    const both = interpolate(short, { from: width, to: toWidth }, toHeight, wide, narrow);
    return Uint8ClampedArray.from(both, (value) => Math.floor(value + 0.5));
  }
  const whole = [0, 0, width, height];
  const [left, upper, right, lower] = fit === "crop" ? middle(width, height, toWidth, toHeight) : whole;
  if (height > toHeight && height - toHeight > 2 * (width - toWidth)) {
    const low = stretchHeight(rgb, width, height, toHeight, upper, lower);
    return stretchWidth(low, width, toHeight, toWidth, left, right);
  }
  const narrow = stretchWidth(rgb, width, height, toWidth, left, right);
  return stretchHeight(narrow, toWidth, height, toHeight, upper, lower);
}

/** RGB pixels of RGBA ones: transparent pixels are composited on a background [red, green, blue]. */
export function opaque(rgba, background) {
  const rgb = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    const alpha = rgba[from + 3];
    for (let channel = 0; channel < 3; channel++) {
      const color = rgba[from + channel];
      rgb[to + channel] = alpha === 255 ? color : (color * alpha + background[channel] * (255 - alpha)) / 255;
    }
  }
  return rgb;
}

/** The luminance of RGB pixels, with Pillow's weights. */
export function gray(rgb) {
  const values = new Uint8ClampedArray(rgb.length / 3);
  for (let at = 0; at < values.length; at++) {
    values[at] = (rgb[3 * at] * 19595 + rgb[3 * at + 1] * 38470 + rgb[3 * at + 2] * 7471 + 0x8000) >> 16;
  }
  return values;
}

/** The numbers that a model takes for pixels, given those for black and white. */
export function inputValues(pixels, [black, white]) {
  const [low, span] = [Math.fround(black), Math.fround(white - black)]; // each step in float32, as NumPy computes
  const table = Float32Array.from({ length: 256 }, (_, pixel) => low + Math.fround(span * Math.fround(pixel / 255)));
  return Float32Array.from(pixels, (pixel) => table[pixel]);
}

/**
 * Probabilities of a model's outputs, which are logits or probabilities; one output is that of the second class.
 * Outputs of which one is NaN or infinite are refused, as `predict` refuses them.
 */
export function probabilities(outputs, kind) {
  if (!outputs.every(Number.isFinite)) throw new Error("the model gives NaN or infinity");
  const logarithm = (value) => Math.log(Math.max(value, 1e-7));
  let logits = Array.from(outputs, (value) => (kind === "probabilities" ? logarithm(value) : value));
  if (logits.length === 1) {
    logits = [0, kind === "probabilities" ? logits[0] - logarithm(1 - outputs[0]) : logits[0]];
  }
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** The middle of some values, or the mean of the two in the middle. */
export function median(values) {
  const sorted = values.toSorted((one, other) => one - other);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

/** Whether two answers are one class: by its name, or by its place where a model's classes have no names. */
export function agree(one, other) {
  const named = one.model.about.named && other.model.about.named;
  return named ? one.name === other.name : one.best === other.best;
}

/** Where a patch of a size may lie along an axis: a third of it apart, and at the end. */
function places(size, patch) {
  const step = Math.max(1, Math.round(patch / 3));
  const found = [];
  for (let at = 0; at < size - patch; at += step) found.push(at);
  return [...found, size - patch];
}

/**
 * How much a score falls where a patch, a quarter of each side, hides the picture behind its mean color.
 *
 * Returns, for each pixel, the mean fall over the patches that cover it.
 */
export async function occlusionMap(rgb, width, height, score) {
  const mean = [0, 1, 2].map((channel) => {
    let sum = 0;
    for (let at = channel; at < rgb.length; at += 3) sum += rgb[at];
    return Math.round((sum * 3) / rgb.length);
  });
  const [patchWidth, patchHeight] = [width, height].map((size) => Math.max(1, Math.round(size / 4)));
  const [falls, covered] = [new Float32Array(width * height), new Float32Array(width * height)];
  const whole = await score(rgb);
  for (const top of places(height, patchHeight)) {
    for (const left of places(width, patchWidth)) {
      const inside = [];
      for (let y = top; y < top + patchHeight; y++) {
        for (let x = left; x < left + patchWidth; x++) inside.push(y * width + x);
      }
      const hidden = Uint8ClampedArray.from(rgb);
      for (const at of inside) hidden.set(mean, 3 * at);
      const fall = whole - (await score(hidden));
      for (const at of inside) {
        falls[at] += fall;
        covered[at] += 1;
      }
    }
  }
  return falls.map((fall, at) => fall / covered[at]);
}
