// The worker of the static page: decodes images, fits them and runs the network, so that the page itself stays responsive.
//
// Messages: {id, kind: "open", models, folder, threads}, {id, kind: "predict", model, source: Blob or ImageBitmap} and, for tests,
// {id, kind: "pixels", ...}. Answers: {id, value} or {id, error, about}: `about` is "image" for an ImageError.

import { decode, pixelsOf } from "./decode.js";
import { ImageError } from "./messages.js";
import { fit } from "./preprocess.js";

let runtime;
let folder;
let models = [];
const sessions = new Map();

async function open(message) {
  ({ models, folder } = message);
  runtime = await import(new URL("runtime/ort.wasm.bundle.min.mjs", folder));
  runtime.env.wasm.wasmPaths = { wasm: new URL("runtime/ort-wasm-simd-threaded.wasm", folder).href };
  runtime.env.wasm.numThreads = message.threads;
  runtime.env.logLevel = "error";
  for (const index of models.keys()) await session(index);
}

async function session(index) {
  if (!sessions.has(index)) {
    const response = await fetch(new URL(models[index].file, folder));
    if (!response.ok) throw new Error(`${models[index].file} is not there`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    sessions.set(index, await runtime.InferenceSession.create(bytes, { executionProviders: ["wasm"] }));
  }
  return sessions.get(index);
}

async function pixels({ model, source }) {
  const { preprocess } = models[model];
  if (source instanceof Blob) return fit(await decode(source, preprocess.bits), preprocess);
  try {
    return fit(pixelsOf(source), preprocess);
  } finally {
    source.close();
  }
}

async function predict(message) {
  const begin = performance.now();
  const { size, mean } = models[message.model].preprocess;
  const images = new runtime.Tensor("uint8", await pixels(message), [1, size, size, mean.length]);
  const { probabilities } = await (await session(message.model)).run({ images });
  return { probabilities: Array.from(probabilities.data), seconds: (performance.now() - begin) / 1000 };
}

const ACTIONS = { open, predict, pixels };
// One message at a time, in order: a session takes one call at a time.
let last = Promise.resolve();

self.addEventListener("message", ({ data }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id: data.id, value: await ACTIONS[data.kind](data) });
    } catch (error) {
      self.postMessage({
        id: data.id,
        error: String(error?.message || error),
        about: error instanceof ImageError ? "image" : "",
      });
    }
  });
});
