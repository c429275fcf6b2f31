// The engine of the static page: the network runs in this browser, and no image leaves it.
//
// An engine has `open()`, which returns {version, threshold, max_bytes, models}; `predict(model, source, options)` for a
// Blob, `frame(model, bitmap)` for an image of the camera, which it closes, and `link(model, url)`. The last three return
// {name, top: [{class, probability}], seconds} with as many classes as `options.top`; errors are those of messages.js.

import { EngineError, ImageError } from "./messages.js";

const MOST_THREADS = 4;
const FOLDER = new URL("../", import.meta.url).href;

/** Runs the models of model.json in a worker. */
export class WasmEngine {
  canFetch = false;
  threads = 1;
  where = "The model runs in this browser: images stay on this device.";

  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #count = 0;
  #models = [];

  constructor() {
    this.#worker.addEventListener("message", ({ data }) => {
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      if (data.error === undefined) resolve(data.value);
      else reject(data.about === "image" ? new ImageError(data.error) : new EngineError(`The model failed (${data.error}); reload this page.`));
    });
    this.#worker.addEventListener("error", event => {
      for (const { reject } of this.#waiting.values()) {
        reject(new EngineError(`The model could not be started (${event.message || "its files are not there"}); reload this page.`));
      }
      this.#waiting.clear();
    });
  }

  async open() {
    const response = await fetch(new URL("model.json", FOLDER));
    if (!response.ok) throw new EngineError("model.json is not beside this page; copy the whole folder.");
    const info = await response.json();
    this.#models = info.models;
    // Threads need shared memory, which a host allows by two headers (COOP and COEP); one thread works without them. One
    // core is left to the page: on two busy cores, two threads that wait for each other took three times as long as one.
    this.threads = crossOriginIsolated ? Math.max(1, Math.min(navigator.hardwareConcurrency - 1, MOST_THREADS)) : 1;
    await this.#ask("open", { models: info.models, folder: FOLDER, threads: this.threads });
    for (const model of info.models) {
      model.samples = Object.fromEntries(Object.entries(model.samples ?? {}).map(([name, path]) => [name, FOLDER + path]));
    }
    return info;
  }

  async predict(model, source, { top = 5 } = {}) {
    return this.#answer(model, { source }, [], top);
  }

  async frame(model, bitmap, { top = 5 } = {}) {
    return this.#answer(model, { source: bitmap }, [bitmap], top);
  }

  /** Return the image at `url` as a Blob; the other site must allow it. */
  async load(url) {
    let response;
    try {
      response = await fetch(url, { credentials: "omit", referrerPolicy: "no-referrer" });
    } catch {
      throw new EngineError(`${new URL(url).host} does not let pages read this image, or does not answer; save the image, then choose the file.`);
    }
    if (!response.ok) throw new EngineError(`${new URL(url).host} has no image there (status ${response.status}); check the link.`);
    return response.blob();
  }

  /** Return the pixels that the network takes: a Uint8Array [S, S, C]. */
  pixels(model, source) {
    return this.#ask("pixels", { model, source });
  }

  async #answer(model, message, transfer, top) {
    const { probabilities, seconds } = await this.#ask("predict", { model, ...message }, transfer);
    const { classes } = this.#models[model];
    const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
    const best = order.slice(0, top).map(index => ({ class: classes[index], probability: probabilities[index] }));
    return { top: best, seconds };
  }

  #ask(kind, message, transfer = []) {
    const id = ++this.#count;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, kind, ...message }, transfer);
    });
  }
}
