// The answers on the page: one card for each model, with the best classes as bars.

const percent = value => `${(100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 0 : 1)} %`;

/** Return a new element with a class and a text; the text is never read as HTML. */
export function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** Return {label, note, unsure}: what a prediction means under a threshold from 0 to 1. */
export function verdict(prediction, threshold) {
  const [best] = prediction.top;
  if (best.probability >= threshold) return { label: best.class, note: "", unsure: false };
  const note = `Most likely ${best.class}, but below ${percent(threshold)}.`;
  return { label: "unsure", note, unsure: true };
}

/** Return the sentence that a screen reader gets for the predictions of all models. */
export function spoken(models, predictions, threshold) {
  const parts = predictions.map((prediction, index) => {
    if (!prediction) return "";
    const { label, note } = verdict(prediction, threshold);
    const who = models.length > 1 ? `${models[index].name}: ` : "";
    return note ? `${who}unsure. ${note}` : `${who}${label}, ${percent(prediction.top[0].probability)}.`;
  });
  return parts.filter(Boolean).join(" ");
}

/** The card of one model. */
export class Card {
  constructor(model, named) {
    this.element = element("article", "card");
    this.element.setAttribute("aria-label", model.name);
    const top = element("div", "card-top");
    if (named) top.append(element("h3", "", model.name));
    this.time = element("span", "quiet time");
    top.append(this.time);
    this.headline = element("p", "headline");
    this.label = element("span", "label");
    this.value = element("span", "value");
    this.headline.append(this.label, " ", this.value);
    this.note = element("p", "quiet note");
    this.map = element("img", "map");
    this.map.hidden = true;
    this.bars = element("ol", "bars");
    this.element.append(top, this.headline, this.note, this.map, this.bars);
    this.rows = [];
    this.empty();
  }

  /** Show that no answer is there yet. */
  empty(text = "The answer will be here.") {
    this.element.classList.add("waiting");
    this.element.classList.remove("unsure");
    this.label.textContent = this.value.textContent = this.time.textContent = "";
    this.note.textContent = text;
    this.bars.replaceChildren();
    this.rows = [];
    this.map.hidden = true;
  }

  /** Show a prediction; `time` is a text for the corner. */
  show(prediction, threshold, time) {
    const { label, note, unsure } = verdict(prediction, threshold);
    this.element.classList.remove("waiting");
    this.element.classList.toggle("unsure", unsure);
    this.label.textContent = label;
    this.value.textContent = unsure ? "" : percent(prediction.top[0].probability);
    this.note.textContent = note;
    this.time.textContent = time;
    while (this.rows.length < prediction.top.length) this.#addRow();
    this.rows.forEach((row, index) => {
      const entry = prediction.top[index];
      row.item.hidden = !entry;
      if (!entry) return;
      row.name.textContent = entry.class;
      row.value.textContent = percent(entry.probability);
      row.fill.style.transform = `scaleX(${Math.max(0.004, entry.probability)})`;
    });
  }

  #addRow() {
    const item = element("li");
    const [name, track, fill, value] = [element("span", "name"), element("span", "track"), element("span", "fill"), element("span", "share")];
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    item.append(name, value, track);
    this.bars.append(item);
    this.rows.push({ item, name, fill, value });
  }
}

/** Return the list of facts about a model. */
export function factsOf(model, named) {
  const box = element("div", "card");
  if (named) box.append(element("h3", "", model.name));
  const list = element("dl");
  const add = (term, text) => text && list.append(element("dt", "", term), element("dd", "", text));
  add("Network", model.network);
  add("Input", model.size && `${model.size} x ${model.size} pixels`);
  add("Classes", String(model.classes.length));
  add("Data", model.data);
  for (const [split, numbers] of Object.entries(model.metrics ?? {})) {
    // On its training images a classifier is right whatever it has learned.
    if (split !== "train" && typeof numbers?.accuracy === "number") {
      add(`Accuracy, ${split}`, percent(numbers.accuracy) + (numbers.count ? ` of ${numbers.count.toLocaleString("en")} images` : ""));
    }
  }
  add("Licence", model.licence);
  box.append(list);
  return box;
}

export const secondsText = seconds => (seconds < 0.995 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`);
