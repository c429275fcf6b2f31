// Bytes of an image file to RGB pixels, upright and over white, as imgclf/images/decode.py gives them.
//
// The browser decodes JPEG, WebP, GIF, BMP, AVIF and most PNGs; what it would do otherwise than imgclf is done here: the
// orientation of EXIF, the check for a missing end, and the PNGs of `needsOwnDecoder`.

import { ImageError } from "./messages.js";
import { decodePng, needsOwnDecoder, parsePng } from "./png.js";

const MAX_PIXELS = 100e6;
const MAGIC = [
  ["JPEG", [0xff, 0xd8, 0xff]],
  ["PNG", [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ["GIF", [0x47, 0x49, 0x46, 0x38]],
  ["BMP", [0x42, 0x4d]],
  ["TIFF", [0x49, 0x49, 0x2a, 0]],
  ["TIFF", [0x4d, 0x4d, 0, 0x2a]],
  ["JPEG 2000", [0, 0, 0, 0x0c, 0x6a, 0x50]],
];
const ORIENTATION_TAG = 274;

/** Return RGB pixels of a file; raises ImageError for one that imgclf refuses or that the browser can't read. */
export async function decode(blob, bits = 16) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const format = formatOf(bytes);
  if (!format) throw new ImageError("is not an image; choose a JPEG, PNG, WebP or GIF file");
  let orientation = 1;
  if (format === "PNG") {
    const png = parsePng(bytes);
    if (png.width * png.height > MAX_PIXELS) throw tooLarge(png);
    orientation = exifOrientation(png.chunks.eXIf?.[0]);
    if (needsOwnDecoder(png) || orientation !== 1) return upright(await decodePng(png, bits), orientation);
  } else if (format === "JPEG") {
    if (!hasEnd(bytes)) throw new ImageError("is damaged or cut off");
    orientation = exifOrientation(jpegExif(bytes));
  } else if (format === "WebP") {
    orientation = exifOrientation(webpExif(bytes));
  }
  return upright(await byBrowser(bytes, format), orientation);
}

/** Return RGB pixels of a frame of a camera. */
export function pixelsOf(bitmap) {
  const canvas = canvasOf(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const rgb = new Uint8Array((data.length / 4) * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return { width: canvas.width, height: canvas.height, channels: 3, data: rgb };
}

let kept = null; // the last canvas: the frames of a camera have one size

function canvasOf(width, height) {
  if (kept?.width !== width || kept?.height !== height) kept = new OffscreenCanvas(width, height);
  return kept;
}

function tooLarge({ width, height }) {
  return new ImageError(`is ${width} x ${height} pixels; at most ${MAX_PIXELS / 1e6} million are read, choose a smaller one`);
}

async function byBrowser(bytes, format) {
  // Without a type that names the format: the browser recognises it by content, and EXIF's orientation is applied here.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "none" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([withoutOrientation(bytes, format)]), options);
  } catch {
    throw new ImageError(`is a ${format} file that this browser can't read; save it as JPEG or PNG`);
  }
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) throw tooLarge(bitmap);
    return pixelsOf(bitmap);
  } finally {
    bitmap.close();
  }
}

function formatOf(bytes) {
  for (const [name, magic] of MAGIC) if (magic.every((byte, at) => bytes[at] === byte)) return name;
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (text(0, 4) === "RIFF" && text(8, 12) === "WEBP") return "WebP";
  if (text(4, 8) === "ftyp") return /avi[fs]/.test(text(8, 32)) ? "AVIF" : "HEIF";
  return null;
}

/** Return whether a JPEG has the marker of its end; bytes may follow it. */
function hasEnd(bytes) {
  for (let at = bytes.length - 2; at >= 0; at--) if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return true;
  return false;
}

/** Yield [marker, start, end] of the segments before the pixels of a JPEG. */
function* segments(bytes) {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at++;
      continue;
    }
    if (marker === 0xda) return;
    const end = at + 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
    yield [marker, at + 4, Math.min(end, bytes.length)];
    at = end;
  }
}

function jpegExif(bytes) {
  for (const [marker, start, end] of segments(bytes)) {
    if (marker === 0xe1 && String.fromCharCode(...bytes.subarray(start, start + 6)) === "Exif\0\0") {
      return bytes.subarray(start + 6, end);
    }
  }
  return undefined;
}

function webpExif(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (String.fromCharCode(...bytes.subarray(at, at + 4)) === "EXIF") {
      const exif = bytes.subarray(at + 8, at + 8 + length);
      return String.fromCharCode(...exif.subarray(0, 6)) === "Exif\0\0" ? exif.subarray(6) : exif;
    }
    at += 8 + length + (length & 1);
  }
  return undefined;
}

/** Return the place of EXIF's orientation in its bytes, and the value; null where it has none that can be read. */
function findOrientation(exif) {
  if (!exif || exif.length < 14) return null;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = exif[0] === 0x49;
  const start = view.getUint32(4, little);
  if (start + 2 > exif.length) return null;
  const count = view.getUint16(start, little);
  for (let i = 0, at = start + 2; i < count && at + 12 <= exif.length; i++, at += 12) {
    if (view.getUint16(at, little) === ORIENTATION_TAG) {
      const value = view.getUint16(at + 8, little);
      return value >= 1 && value <= 8 ? { at: at + 8, value } : null;
    }
  }
  return null;
}

const exifOrientation = exif => findOrientation(exif)?.value ?? 1;

/** Return the file with EXIF's orientation set to 1: browsers differ in whether "none" switches it off. */
function withoutOrientation(bytes, format) {
  const exif = format === "JPEG" ? jpegExif(bytes) : format === "WebP" ? webpExif(bytes) : undefined;
  const found = findOrientation(exif);
  if (!found || found.value === 1) return bytes;
  const copy = bytes.slice();
  const at = exif.byteOffset - bytes.byteOffset + found.at;
  [copy[at], copy[at + 1]] = exif[0] === 0x49 ? [1, 0] : [0, 1];
  return copy;
}

/** Return the pixels turned upright by EXIF's orientation; 5 to 8 swap width and height. */
export function upright(pixels, orientation) {
  if (orientation === 1) return pixels;
  const { width, height, channels, data } = pixels;
  const [newWidth, newHeight] = orientation > 4 ? [height, width] : [width, height];
  const [flipY, flipX] = [[3, 4, 7, 8].includes(orientation), [2, 3, 6, 7].includes(orientation)];
  const out = new Uint8Array(data.length);
  for (let y = 0, to = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      const [row, column] = [flipY ? newHeight - 1 - y : y, flipX ? newWidth - 1 - x : x];
      const from = (orientation > 4 ? column * width + row : row * width + column) * channels;
      for (let channel = 0; channel < channels; channel++) out[to++] = data[from + channel];
    }
  }
  return { width: newWidth, height: newHeight, channels, data: out };
}
