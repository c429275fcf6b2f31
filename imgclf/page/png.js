// PNG files that a browser would change on their way to 8 bits RGB: those of 16 bits, and those that are transparent.
//
// A browser's canvas holds colours multiplied by their alpha in 8 bits, and shortens 16 bits in its own way; this reader
// follows imgclf/images/decode.py: transparency is blended over white, 16-bit grey is scaled, 16-bit colours keep their
// high bytes. Other PNGs are the browser's work.

import { ImageError } from "./messages.js";

const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
// (x, y, step in x, step in y) of each pass of an interlaced file.
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
const PAETH = 4;

/** Return {width, height, depth, colour, interlaced, chunks} of a whole PNG; raises ImageError for one that is cut off. */
export function parsePng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = {};
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) break;
    (chunks[name] ??= []).push(bytes.subarray(at + 8, at + 8 + length));
    if (name === "IEND") break;
    at += 12 + length;
  }
  const header = chunks.IHDR?.[0];
  if (!chunks.IEND || !chunks.IDAT || header?.length !== 13) throw new ImageError("is damaged or cut off");
  const size = new DataView(header.buffer, header.byteOffset, 13);
  const [depth, colour, , , interlaced] = header.subarray(8);
  return { width: size.getUint32(0), height: size.getUint32(4), depth, colour, interlaced: interlaced === 1, chunks };
}

/** Return whether this module must decode the file rather than the browser. */
export function needsOwnDecoder(png) {
  return png.depth === 16 || png.colour === 4 || png.colour === 6 || png.chunks.tRNS !== undefined;
}

/** Return RGB pixels as imgclf's decoder gives them; `bits`: 2 ** bits - 1 is white in 16-bit grey. */
export async function decodePng(png, bits) {
  const { width, height, depth, colour } = png;
  const samples = SAMPLES[colour];
  if (!samples || ![1, 2, 4, 8, 16].includes(depth)) throw new ImageError("is damaged");
  const raw = await inflate(png.chunks.IDAT);
  const values = new Uint16Array(width * height * samples);
  let at = 0;
  for (const [x, y, stepX, stepY] of png.interlaced ? ADAM7 : [[0, 0, 1, 1]]) {
    const pass = { width: Math.ceil((width - x) / stepX), height: Math.ceil((height - y) / stepY) };
    if (pass.width < 1 || pass.height < 1) continue;
    const stride = Math.ceil((pass.width * samples * depth) / 8);
    if (at + (stride + 1) * pass.height > raw.length) throw new ImageError("is damaged or cut off");
    const rows = unfiltered(raw, at, stride, pass.height, Math.max(1, (samples * depth) >> 3));
    at += (stride + 1) * pass.height;
    for (let row = 0; row < pass.height; row++) {
      for (let column = 0; column < pass.width; column++) {
        const to = ((y + row * stepY) * width + x + column * stepX) * samples;
        for (let s = 0; s < samples; s++) values[to + s] = sample(rows, row * stride, column * samples + s, depth);
      }
    }
  }
  return { width, height, channels: 3, data: toRgb(values, png, bits) };
}

async function inflate(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new ImageError("is damaged or cut off");
  }
}

function unfiltered(raw, start, stride, height, step) {
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const filter = raw[start + y * (stride + 1)];
    const from = start + y * (stride + 1) + 1;
    const to = y * stride;
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? out[to + x - step] : 0;
      const up = y ? out[to + x - stride] : 0;
      const corner = x >= step && y ? out[to + x - stride - step] : 0;
      const guess = [0, left, up, (left + up) >> 1][filter] ?? (filter === PAETH ? paeth(left, up, corner) : null);
      if (guess === null) throw new ImageError("is damaged");
      out[to + x] = raw[from + x] + guess;
    }
  }
  return out;
}

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

function sample(rows, start, index, depth) {
  if (depth === 8) return rows[start + index];
  if (depth === 16) return (rows[start + 2 * index] << 8) | rows[start + 2 * index + 1];
  const shift = 8 - depth - ((index * depth) & 7);
  return (rows[start + ((index * depth) >> 3)] >> shift) & ((1 << depth) - 1);
}

function toRgb(values, { width, height, depth, colour, chunks }, bits) {
  const out = new Uint8Array(width * height * 3);
  const samples = SAMPLES[colour];
  const key = chunks.tRNS && colour !== 3 ? transparentKey(chunks.tRNS[0], samples) : null;
  const [palette, alphas] = [chunks.PLTE?.[0], colour === 3 ? chunks.tRNS?.[0] : undefined];
  if (colour === 3 && !palette) throw new ImageError("lacks its palette");
  const grey16 = colour === 0 && depth === 16;
  const to8 = grey16
    ? value => Math.min(255, Math.round((value * 255) / (2 ** bits - 1)))
    : value => (depth === 16 ? value >> 8 : depth < 8 ? (value * 255) / ((1 << depth) - 1) : value);
  for (let i = 0; i < width * height; i++) {
    const at = i * samples;
    let [r, g, b, alpha] = [0, 0, 0, 255];
    if (colour === 3) {
      const entry = values[at];
      [r, g, b] = [palette[3 * entry], palette[3 * entry + 1], palette[3 * entry + 2]];
      alpha = alphas?.[entry] ?? 255;
    } else {
      r = to8(values[at]);
      [g, b] = samples >= 3 ? [to8(values[at + 1]), to8(values[at + 2])] : [r, r];
      if (samples % 2 === 0) alpha = to8(values[at + samples - 1]);
      if (key && isKey(values, at, key, depth)) alpha = 0;
    }
    out[3 * i] = overWhite(r, alpha);
    out[3 * i + 1] = overWhite(g, alpha);
    out[3 * i + 2] = overWhite(b, alpha);
  }
  return out;
}

function transparentKey(chunk, samples) {
  return Array.from({ length: samples }, (_, s) => (chunk[2 * s] << 8) | chunk[2 * s + 1]);
}

function isKey(values, at, key, depth) {
  // Colours of 16 bits are compared by their high bytes, because imgclf has nothing else of them.
  const shift = depth === 16 && key.length === 3 ? 8 : 0;
  const mask = (1 << depth) - 1;
  return key.every((value, s) => values[at + s] >> shift === (value & mask) >> shift);
}

function overWhite(value, alpha) {
  const sum = value * alpha + 255 * (255 - alpha) + 128;
  return (sum + (sum >> 8)) >> 8;
}
