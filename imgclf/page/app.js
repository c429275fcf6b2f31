// The page: takes images from files, drops, the clipboard, links, samples and the camera, and shows the answers.

import { Camera } from "./camera.js";
import { History, drawSamples, thumbnail } from "./gallery.js";
import { ImageError, NO_IMAGE_DROPPED, NO_IMAGE_PASTED, NO_LINK, checkFile, sentence } from "./messages.js";
import { Card, factsOf, secondsText, spoken } from "./results.js";

const SHOWN_CLASSES = 5;
const SPEECH_MS = 2000; // between two announcements while the camera runs
const MOST_SAMPLES_OPEN = 30; // more are a long way to what is below them
const DEFAULT_MAX_BYTES = 32e6;

const byId = id => document.getElementById(id);
const $ = Object.fromEntries(
  ["ask", "drop", "empty", "preview", "video", "linked", "file", "camera", "map", "link", "threshold", "status", "error"].map(id => [id, byId(id)]),
);

let engine;
let info;
let cards = [];
let shown = null; // the entry in view: {name, blob or url, predictions, thumb, maps}
let turn = 0; // grows with every question, so that a late answer is not shown over a newer one
let starting = false; // whether the browser is asking about the camera
let spokenLast = { text: "", at: 0 };
const camera = new Camera($.video, answerFrame, cameraFailed);
const history = new History(byId("history"), byId("history-list"), byId("clear"), open);
const threshold = () => Number($.threshold.value) / 100;

function fail(text) {
  $.error.textContent = text;
  $.error.hidden = false;
  $.error.scrollIntoView({ block: "nearest" });
}

function clearError() {
  $.error.hidden = true;
  $.error.textContent = "";
}

async function start() {
  const { engine: kind } = document.documentElement.dataset;
  engine = kind === "wasm" ? new (await import("./engine_wasm.js")).WasmEngine() : new (await import("./engine_http.js")).HttpEngine();
  try {
    info = await engine.open();
  } catch (error) {
    byId("subtitle").textContent = "The model is not there.";
    fail(sentence(error));
    return;
  }
  const several = info.models.length > 1;
  cards = info.models.map(model => new Card(model, several));
  byId("models").replaceChildren(...cards.map(card => card.element));
  byId("models").classList.toggle("several", several);
  byId("facts").replaceChildren(...info.models.map(model => factsOf(model, several)));
  const threads = engine.threads > 1 ? ` The model uses ${engine.threads} threads.` : "";
  byId("made").textContent = (info.version ? `Made with imgclf ${info.version}.` : "") + threads;
  byId("about").hidden = false;
  document.title = byId("title").textContent = info.models.map(model => model.name).join(", ");
  const [first] = info.models;
  const what = several ? `${info.models.length} models side by side.` : `Tells ${first.classes.length} classes apart.`;
  byId("subtitle").textContent = `${what} ${engine.where}`;
  const samples = drawSamples(byId("samples"), byId("samples-list"), info.models, openSample);
  byId("samples-box").open = samples <= MOST_SAMPLES_OPEN;
  $.threshold.value = Math.round(100 * (info.threshold ?? 0));
  for (const control of [$.file, $.camera, $.link, byId("link-go"), $.threshold]) control.disabled = false;
  showThreshold();
  document.querySelector("main").removeAttribute("aria-busy");
}

/** Show one of: the invitation, an image, the camera, the name of a link. */
function stage(kind) {
  for (const [name, node] of Object.entries({ empty: $.empty, image: $.preview, camera: $.video, link: $.linked })) node.hidden = name !== kind;
  $.drop.dataset.shows = kind;
}

function showEntry(entry) {
  shown = entry;
  if (entry.blob) {
    if ($.preview.dataset.address) URL.revokeObjectURL($.preview.dataset.address);
    $.preview.dataset.address = $.preview.src = URL.createObjectURL(entry.blob);
    $.preview.alt = entry.name;
    stage("image");
  } else {
    $.linked.textContent = entry.name;
    stage("link");
  }
  const maps = entry.predictions.some(Boolean) && info.models.some(model => model.saliency);
  $.map.hidden = !maps;
  $.map.setAttribute("aria-pressed", "false");
  showAnswers();
}

/** Draw the answers in view again, under the present threshold. */
function showAnswers() {
  cards.forEach((card, index) => {
    const prediction = shown?.predictions[index];
    if (prediction) card.show(prediction, threshold(), secondsText(prediction.seconds));
    else card.empty(shown ? "No answer." : undefined);
    card.map.hidden = true;
  });
}

function announce(text, now = true) {
  const time = performance.now();
  if (!text || (!now && (text === spokenLast.text || time - spokenLast.at < SPEECH_MS))) return;
  spokenLast = { text, at: time };
  $.status.textContent = text;
}

/** Ask all models about an entry, show the answers and keep them in the history. */
async function ask(entry) {
  const mine = ++turn;
  if (camera.running) toggleCamera();
  clearError();
  try {
    if (entry.blob) checkFile(entry.blob, info.max_bytes ?? DEFAULT_MAX_BYTES);
  } catch (error) {
    return fail(sentence(error, entry.name));
  }
  Object.assign(entry, { predictions: [], maps: [], thumb: null });
  showEntry(entry);
  cards.forEach(card => card.empty("One moment."));
  $.ask.setAttribute("aria-busy", "true");
  const results = await Promise.allSettled(info.models.map((_, index) => request(entry, index)));
  entry.predictions = results.map(result => result.value ?? null);
  const failed = results.find(result => result.status === "rejected");
  if (entry.predictions.some(Boolean)) {
    entry.thumb = entry.blob ? await thumbnail(entry.blob) : null;
    history.add(entry, threshold());
  }
  if (mine !== turn) return;
  $.ask.removeAttribute("aria-busy");
  if (failed) fail(sentence(failed.reason, entry.name));
  showEntry(entry);
  announce(spoken(info.models, entry.predictions, threshold()));
}

function request(entry, index, saliency = false) {
  const options = { top: SHOWN_CLASSES, saliency };
  return entry.blob ? engine.predict(index, entry.blob, options) : engine.link(index, entry.url, options);
}

/** Show an entry of the history again, without asking. */
function open(entry) {
  turn++;
  if (camera.running) toggleCamera();
  clearError();
  showEntry(entry);
  announce(spoken(info.models, entry.predictions, threshold()));
  $.drop.scrollIntoView({ block: "nearest" });
}

async function openSample(name, address) {
  try {
    const response = await fetch(address);
    if (!response.ok) throw new ImageError("is not there any more; reload this page");
    $.drop.scrollIntoView({ block: "nearest" });
    await ask({ name: `sample of ${name}`, blob: await response.blob() });
  } catch (error) {
    fail(sentence(error, "The sample"));
  }
}

async function askFiles(files, otherwise) {
  if (!files.length) return fail(otherwise);
  for (const file of files) await ask({ name: file.name || "pasted image", blob: file });
}

async function askLink(text) {
  let url;
  try {
    url = new URL(text.trim());
  } catch {
    return fail(NO_LINK);
  }
  if (!/^https?:$/.test(url.protocol)) return fail(NO_LINK);
  const name = url.pathname.split("/").pop() || url.host;
  if (engine.canFetch) return ask({ name: url.host + url.pathname, url: url.href });
  clearError();
  $.ask.setAttribute("aria-busy", "true");
  const mine = turn;
  try {
    const blob = await engine.load(url.href);
    if (mine === turn) await ask({ name, blob });
  } catch (error) {
    fail(sentence(error, name));
  } finally {
    $.ask.removeAttribute("aria-busy");
  }
}

/** Show the saliency maps of the entry in view, or the image again. */
async function toggleMap() {
  const entry = shown;
  const on = $.map.getAttribute("aria-pressed") !== "true";
  const able = info.models.flatMap((model, index) => (model.saliency ? [index] : []));
  $.map.setAttribute("aria-pressed", String(on));
  if (!on) return showEntry(entry);
  clearError();
  try {
    for (const index of able) entry.maps[index] ??= (await request(entry, index, true)).saliency;
  } catch (error) {
    fail(sentence(error, entry.name));
    $.map.setAttribute("aria-pressed", "false");
  }
  if (shown !== entry || $.map.getAttribute("aria-pressed") !== "true") return;
  for (const index of able) {
    // With one model the map takes the place of the image; with several, each card shows its own.
    const image = info.models.length === 1 ? $.preview : cards[index].map;
    image.src = entry.maps[index];
    image.alt = `Saliency map of ${entry.name}: warm places raise the probability of ${entry.predictions[index].top[0].class}`;
    image.hidden = false;
  }
  if (info.models.length === 1) stage("image");
}

const rate = { begin: 0, count: 0, text: "" };

async function answerFrame(bitmap) {
  const copies = [bitmap];
  while (copies.length < info.models.length) copies.push(await createImageBitmap(bitmap));
  const predictions = await Promise.all(copies.map((copy, index) => engine.frame(index, copy, { top: SHOWN_CLASSES })));
  if (!camera.running) return;
  clearError();
  rate.count++;
  const elapsed = performance.now() - rate.begin;
  if (elapsed >= 1000) {
    rate.text = `${((1000 * rate.count) / elapsed).toFixed(0)} answers a second`;
    Object.assign(rate, { begin: performance.now(), count: 0 });
  }
  predictions.forEach((prediction, index) => cards[index].show(prediction, threshold(), rate.text));
  announce(spoken(info.models, predictions, threshold()).replace(/, [\d.]+ %/g, ""), false);
}

function showCamera(on) {
  $.camera.setAttribute("aria-pressed", String(on));
  $.camera.textContent = on ? "Stop the camera" : "Use the camera";
  byId("snap").hidden = !on;
  $.drop.classList.toggle("live", on);
}

/** Show the page without the camera, and without an image. */
function endCamera() {
  showCamera(false);
  stage("empty");
  cards.forEach(card => card.empty());
}

function cameraFailed(text) {
  fail(text);
  if (!camera.running) endCamera();
}

async function toggleCamera() {
  if (camera.running) {
    camera.stop();
    return endCamera();
  }
  if (starting) return;
  starting = true;
  const mine = ++turn;
  clearError();
  shown = null;
  $.map.hidden = true;
  Object.assign(rate, { begin: performance.now(), count: 0, text: "" });
  cards.forEach(card => card.empty("One moment."));
  stage("camera");
  showCamera(true);
  const runs = await camera.start();
  starting = false;
  if (runs && mine !== turn) {
    // An image was given while the browser asked about the camera.
    camera.stop();
    showCamera(false);
  }
}

/** Ask about the present frame of the camera as about any other image, and keep it. */
async function snap() {
  $.camera.focus(); // this button is about to go
  const bitmap = await camera.square();
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  await ask({ name: `camera, ${time}`, blob: await canvas.convertToBlob({ type: "image/png" }) });
}

function showThreshold() {
  byId("threshold-value").textContent = `${$.threshold.value} %`;
  $.threshold.setAttribute("aria-valuetext", `${$.threshold.value} percent`);
  if (shown) showAnswers();
  history.draw(threshold());
}

function listen() {
  $.file.addEventListener("change", async () => {
    const files = [...$.file.files];
    $.file.value = "";
    if (files.length) await askFiles(files);
  });
  $.camera.addEventListener("click", toggleCamera);
  byId("snap").addEventListener("click", snap);
  $.map.addEventListener("click", toggleMap);
  $.threshold.addEventListener("input", showThreshold);
  byId("link-form").addEventListener("submit", event => {
    event.preventDefault();
    if (info) askLink($.link.value);
  });
  $.preview.addEventListener("error", () => {
    if (!shown) return;
    $.linked.textContent = `${shown.name} (this browser can't show it)`;
    stage("link");
  });
  let depth = 0;
  const over = on => $.drop.classList.toggle("over", on);
  document.addEventListener("dragenter", event => (event.preventDefault(), over(++depth > 0)));
  document.addEventListener("dragleave", () => over(--depth > 0));
  document.addEventListener("dragover", event => event.preventDefault());
  document.addEventListener("drop", event => {
    event.preventDefault();
    over((depth = 0) > 0);
    if (!info) return;
    const link = event.dataTransfer.getData("text/uri-list").split("\n")[0];
    const files = [...event.dataTransfer.files];
    if (!files.length && link) askLink(link);
    else askFiles(files, NO_IMAGE_DROPPED);
  });
  document.addEventListener("paste", event => {
    if (!info) return;
    const files = [...event.clipboardData.files];
    if (!files.length && event.target === $.link) return;
    event.preventDefault();
    const text = event.clipboardData.getData("text/plain").trim();
    if (!files.length && /^https?:\/\/\S+$/.test(text)) askLink(text);
    else askFiles(files, NO_IMAGE_PASTED);
  });
}

listen();
start();
