// The engine of `imgclf serve`: the server classifies. The interface of an engine is described in engine_wasm.js.

import { EngineError, ImageError, SERVER_GONE } from "./messages.js";

const FRAME_QUALITY = 0.92;

/** Asks the server that this page came from. */
export class HttpEngine {
  canFetch = true;
  where = "Images are sent to the server of this page, and nowhere else.";

  #names = [];

  async open() {
    const info = await (await request("metadata")).json();
    this.#names = info.models.map(model => model.name);
    return info;
  }

  async predict(model, source, { top = 5, saliency = false } = {}) {
    const type = source.type.startsWith("image/") ? source.type : "application/octet-stream";
    return this.#post(model, source, type, { top, saliency });
  }

  async frame(model, bitmap, { top = 5 } = {}) {
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: FRAME_QUALITY });
    return this.#post(model, blob, blob.type, { top, saliency: false });
  }

  /** The server fetches the image at `url`. */
  async link(model, url, { top = 5, saliency = false } = {}) {
    return this.#post(model, JSON.stringify({ urls: [url] }), "application/json", { top, saliency });
  }

  async #post(model, body, type, { top, saliency }) {
    const query = new URLSearchParams({ model: this.#names[model], top, threshold: 0, saliency: saliency ? 1 : 0 });
    const response = await request(`predict?${query}`, { method: "POST", body, headers: { "Content-Type": type } });
    const [prediction] = (await response.json()).predictions;
    if (prediction.error) throw new EngineError(prediction.error);
    return prediction;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin" });
  } catch {
    throw new EngineError(SERVER_GONE);
  }
  if (response.ok) return response;
  const wait = Number(response.headers.get("Retry-After")) || 1;
  if (response.status === 429) {
    throw new EngineError(`The server has too many images waiting; try again in ${wait} s.`, wait);
  }
  const said = await response.json().then(body => body.error, () => null);
  if (response.status === 413) throw new ImageError(said ? `is refused: ${said}` : "is too large for the server; choose a smaller image");
  if (response.status === 503) throw new EngineError("The server took too long; try again.", wait);
  throw new EngineError(said || `The server failed (status ${response.status}); try again.`);
}
