// The history of this session, and the sample images of the classes.

import { element, verdict } from "./results.js";

const MOST_ENTRIES = 60;
const THUMBNAIL = 160;

/** Return the address of a small square copy of an image, null where the browser can't read it. */
export async function thumbnail(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return null;
  }
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(THUMBNAIL, THUMBNAIL);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, THUMBNAIL, THUMBNAIL);
  const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  context.drawImage(bitmap, left, top, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  bitmap.close();
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 }));
}

/** A button with an image and a text below it, in an item of a list. */
function tile(address, text, detail, onClick) {
  const item = element("li");
  const button = element("button", "tile");
  button.type = "button";
  if (address) {
    const image = element("img");
    image.alt = "";
    image.loading = "lazy";
    image.src = address;
    button.append(image);
  } else {
    button.append(element("span", "no-image"));
  }
  const label = element("span", "tile-text", text);
  button.append(label);
  if (detail !== null) button.append(element("span", "quiet tile-detail", detail));
  button.addEventListener("click", onClick);
  item.append(button);
  return item;
}

/** The images that were asked so far, newest first; nothing of it is stored. */
export class History {
  constructor(section, list, clear, onOpen) {
    this.section = section;
    this.list = list;
    this.onOpen = onOpen;
    this.entries = [];
    clear.addEventListener("click", () => this.clear());
  }

  /** Add an entry {name, blob or url, predictions, thumb}. */
  add(entry, threshold) {
    this.entries.unshift(entry);
    for (const old of this.entries.splice(MOST_ENTRIES)) this.#forget(old);
    this.draw(threshold);
  }

  /** Draw the list under a threshold. */
  draw(threshold) {
    this.section.hidden = !this.entries.length;
    const tiles = this.entries.map(entry => {
      const labels = entry.predictions.filter(Boolean).map(prediction => verdict(prediction, threshold).label);
      return tile(entry.thumb, [...new Set(labels)].join(" / ") || "no answer", entry.name, () => this.onOpen(entry));
    });
    this.list.replaceChildren(...tiles);
  }

  clear() {
    this.entries.forEach(entry => this.#forget(entry));
    this.entries = [];
    this.draw(0);
    document.getElementById("file").focus();
  }

  #forget(entry) {
    if (entry.thumb) URL.revokeObjectURL(entry.thumb);
  }
}

/** Draw a sample image of each class, of the first model that has one; return their number. */
export function drawSamples(section, list, models, onOpen) {
  const samples = new Map();
  for (const model of models) {
    for (const name of model.classes) {
      const address = model.samples?.[name];
      if (address && !samples.has(name)) samples.set(name, address);
    }
  }
  section.hidden = !samples.size;
  list.replaceChildren(...[...samples].map(([name, address]) => tile(address, name, null, () => onOpen(name, address))));
  return samples.size;
}
