// Pixels to the square that a network takes: the arithmetic of imgclf/images/pixels.py, which is Pillow's, bit for bit.
//
// `Pixels` are {width, height, channels, data}: `data` is a Uint8Array of rows from the top, `channels` is 3 or 1.
// Source of the rules: Pillow's Resample.c (two passes, coefficients of 22 bits), Geometry.c (nearest) and Convert.c (grey).

const PRECISION_BITS = 22;
const HALF = 1 << (PRECISION_BITS - 1);

const sinc = x => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// Weight of a source pixel at a distance from the centre, and the distance from which it is 0.
const FILTERS = {
  bilinear: { reach: 1, weight: x => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, weight: x => cubic(Math.abs(x), -0.5) },
  lanczos: { reach: 3, weight: x => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function cubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/** Return the whole number nearest to `x`, of two equally near ones the even: Python's `round`. */
export function roundHalfEven(x) {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

/** Return `pixels` as the Uint8Array [S, S, C] that the network takes, by a `Preprocess.to_dict()` of imgclf. */
export function fit(pixels, preprocess) {
  const { size, resize, crop_pct: share } = preprocess;
  const same = pixels.width === size && pixels.height === size && (resize !== "crop" || share === 1);
  const image = withChannels(pixels, preprocess.mean.length);
  if (same) return image.data;
  if (resize === "squash") return resized(image, size, size, preprocess.interpolation).data;
  return (resize === "letterbox" ? letterboxed : cropped)(image, preprocess).data;
}

/** Return grey pixels for 1 channel (ITU-R 601 in 16 bits), RGB for 3. */
function withChannels(pixels, channels) {
  if (pixels.channels === channels) return pixels;
  const { data } = pixels;
  const count = pixels.width * pixels.height;
  const out = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    if (channels === 1) {
      out[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 0x8000) >> 16;
    } else {
      out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = data[i];
    }
  }
  return { ...pixels, channels, data: out };
}

/** The longer side to `size`; the rest has the colour of the mean. */
function letterboxed(image, { size, mean, interpolation }) {
  const scale = size / Math.max(image.width, image.height);
  const side = length => Math.max(1, roundHalfEven(length * scale));
  const inner = resized(image, side(image.width), side(image.height), interpolation);
  const fill = mean.map(value => Math.min(255, Math.max(0, roundHalfEven(value * 255))));
  const channels = image.channels;
  const data = new Uint8Array(size * size * channels);
  for (let i = 0; i < data.length; i++) data[i] = fill[i % channels];
  const left = Math.floor((size - inner.width) / 2);
  const top = Math.floor((size - inner.height) / 2);
  const row = inner.width * channels;
  for (let y = 0; y < inner.height; y++) {
    data.set(inner.data.subarray(y * row, (y + 1) * row), ((top + y) * size + left) * channels);
  }
  return { width: size, height: size, channels, data };
}

/** The shorter side to floor(size / crop_pct), then the centre. */
function cropped(image, { size, crop_pct: share, interpolation }) {
  const short = Math.floor(size / share);
  const least = Math.min(image.width, image.height);
  const most = Math.max(image.width, image.height);
  // The ends of a very long image, beyond the reach of any filter, are cut off first.
  const spare = Math.floor(most / 2) - 4 * least - 8;
  if (spare > 0 && short * short * most > 2 ** 24 * least) {
    const [x, y] = image.width > image.height ? [spare, 0] : [0, spare];
    image = window(image, x, y, image.width - 2 * x, image.height - 2 * y);
  }
  const width = Math.trunc((short * image.width) / least);
  const height = Math.trunc((short * image.height) / least);
  const start = side => roundHalfEven((side - size) / 2);
  return resized(image, width, height, interpolation, { left: start(width), top: start(height), size });
}

function window(image, left, top, width, height) {
  const { channels } = image;
  const data = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(from, from + width * channels), y * width * channels);
  }
  return { width, height, channels, data };
}

/** Return `image` at `width` x `height`; with `part` only the square of that size, as if it were cut out afterwards. */
export function resized(image, width, height, interpolation, part = null) {
  const box = part
    ? { left: part.left, top: part.top, width: part.size, height: part.size }
    : { left: 0, top: 0, width, height };
  if (width === image.width && height === image.height) {
    return part ? window(image, box.left, box.top, box.width, box.height) : image;
  }
  if (interpolation === "nearest") return nearest(image, width, height, box);
  const filter = FILTERS[interpolation];
  const columns = coefficients(image.width, width, box.left, box.width, filter);
  const rows = coefficients(image.height, height, box.top, box.height, filter);
  // The pixels between the passes are rounded too, so that the order matters.
  if (verticalFirst(image, width, height)) return horizontal(vertical(image, rows), columns);
  // Only the rows that the second pass reads.
  const first = rows.starts[0];
  const last = rows.starts[box.height - 1] + rows.counts[box.height - 1];
  return vertical(horizontal(image, columns, first, last), rows, first);
}

/** Return whether Pillow shrinks the height before the width; measured with Pillow 13, older ones never do. */
function verticalFirst(image, width, height) {
  return image.height > height && image.height - height > 2 * (image.width - width);
}

/** Return the integer weights of the source pixels for outputs `from` to `from + count` of `target`. */
function coefficients(source, target, from, count, filter) {
  const scale = source / target;
  const stretch = Math.max(scale, 1);
  const reach = filter.reach * stretch;
  const most = Math.ceil(reach) * 2 + 1;
  const starts = new Int32Array(count);
  const counts = new Int32Array(count);
  const weights = new Int32Array(count * most);
  const exact = new Float64Array(most);
  for (let i = 0; i < count; i++) {
    if (source === target) {
      // Pillow leaves out the pass: each pixel is itself.
      starts[i] = from + i;
      counts[i] = 1;
      weights[i * most] = 1 << PRECISION_BITS;
      continue;
    }
    const centre = (from + i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(source, Math.trunc(centre + reach + 0.5));
    let total = 0;
    for (let x = 0; x < end - start; x++) {
      exact[x] = filter.weight((x + start - centre + 0.5) * (1 / stretch));
      total += exact[x];
    }
    for (let x = 0; x < end - start; x++) {
      const weight = (total === 0 ? exact[x] : exact[x] * (1 / total)) * 2 ** PRECISION_BITS;
      weights[i * most + x] = Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    starts[i] = start;
    counts[i] = end - start;
  }
  return { starts, counts, weights, most };
}

// A sum of at most 255 * 2 ** 22 * 2 fits 32 bits with its sign, as it must in C.
const clipped = sum => (sum < 0 ? 0 : Math.min(255, sum >> PRECISION_BITS));

function horizontal(image, { starts, counts, weights, most }, first = 0, last = image.height) {
  const { channels, data } = image;
  const width = starts.length;
  const out = new Uint8Array(width * (last - first) * channels);
  const row = channels === 3 ? horizontalRgb : horizontalGrey;
  for (let y = first; y < last; y++) {
    const target = out.subarray((y - first) * width * channels);
    row(data, y * image.width * channels, target, width, starts, counts, weights, most);
  }
  return { width, height: last - first, channels, data: out };
}

// One function for each number of channels: three sums in one loop take a third of the time.
function horizontalRgb(data, begin, out, width, starts, counts, weights, most) {
  for (let x = 0, to = 0; x < width; x++, to += 3) {
    let at = begin + starts[x] * 3;
    let [red, green, blue] = [HALF, HALF, HALF];
    for (let k = x * most, end = k + counts[x]; k < end; k++, at += 3) {
      const weight = weights[k];
      red = (red + Math.imul(data[at], weight)) | 0;
      green = (green + Math.imul(data[at + 1], weight)) | 0;
      blue = (blue + Math.imul(data[at + 2], weight)) | 0;
    }
    out[to] = clipped(red);
    out[to + 1] = clipped(green);
    out[to + 2] = clipped(blue);
  }
}

function horizontalGrey(data, begin, out, width, starts, counts, weights, most) {
  for (let x = 0; x < width; x++) {
    let at = begin + starts[x];
    let sum = HALF;
    for (let k = x * most, end = k + counts[x]; k < end; k++, at++) sum = (sum + Math.imul(data[at], weights[k])) | 0;
    out[x] = clipped(sum);
  }
}

function vertical(image, { starts, counts, weights, most }, first = 0) {
  const { channels, data } = image;
  const height = starts.length;
  const row = image.width * channels;
  const out = new Uint8Array(height * row);
  const sums = new Int32Array(row);
  for (let y = 0; y < height; y++) {
    sums.fill(HALF);
    // Row by row, in the order in which they lie in memory.
    for (let k = 0; k < counts[y]; k++) {
      const weight = weights[y * most + k];
      const from = (starts[y] - first + k) * row;
      for (let x = 0; x < row; x++) sums[x] += Math.imul(data[from + x], weight);
    }
    for (let x = 0, to = y * row; x < row; x++) out[to + x] = clipped(sums[x]);
  }
  return { width: image.width, height, channels, data: out };
}

function nearest(image, width, height, box) {
  const columns = positions(image.width, width);
  const rows = positions(image.height, height);
  const { channels, data } = image;
  const out = new Uint8Array(box.width * box.height * channels);
  for (let y = 0, to = 0; y < box.height; y++) {
    for (let x = 0; x < box.width; x++) {
      const from = (rows[box.top + y] * image.width + columns[box.left + x]) * channels;
      for (let channel = 0; channel < channels; channel++) out[to++] = data[from + channel];
    }
  }
  return { width: box.width, height: box.height, channels, data: out };
}

function positions(source, target) {
  const out = new Int32Array(target);
  const step = source / target;
  // A sum, not a product: Pillow adds the step up, with the rounding that this has.
  for (let i = 0, at = step * 0.5; i < target; i++, at += step) out[i] = Math.min(source - 1, Math.trunc(at));
  return out;
}
