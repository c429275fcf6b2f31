// Draws the results of a run.

// Images

function figure(image, kind = "") {
  const correct = image.true === image.predicted;
  const caption = node("figcaption", {});
  if (image.predicted !== undefined) {
    const share = image.probability > 0.9995 ? "> 99.9 %" : percent(image.probability, image.probability > 0.995 ? 1 : 0);
    const prediction = `${page.classes[image.predicted]} ${share}`;
    caption.append(node("b", {class: correct ? "correct" : "wrong"}, (correct ? "✓ " : "✗ ") + prediction));
    if (!correct) caption.append(node("br"), `true: ${page.classes[image.true]}`);
    caption.append(node("br"), node("span", {class: "quiet"}, image.file));
  } else caption.append(image.caption || "");
  const sources = image.overlay ? [image.src, image.overlay] : [image.src];
  const shown = sources.map(src => node("img", {src, alt: image.file || image.caption || "", loading: "lazy",
                                                 class: page.tiny_pixels ? "pixels" : null}));
  if (shown.length > 1) shown.splice(1, 0, " ");
  return node("figure", {class: image.overlay ? "wide" : kind || null, title: topClasses(image)}, ...shown, caption);
}

function topClasses(image) {
  return image.top ? image.top.map(([index, p]) => `${page.classes[index]} ${percent(p)}`).join("\n") : null;
}

function gallery(images, kind) {
  return node("div", {class: "gallery"}, ...images.map(image => figure(image, kind)));
}

function reliability(rows, title) {
  const side = 250, left = 44, bottom = 34, top = 8, width = 300;
  const at = value => left + value * (side - left), up = value => side - bottom - value * (side - bottom - top);
  const svg = shape("svg", {viewBox: `0 0 ${width} ${side}`, width: "100%", style: "max-width: 420px", role: "img",
                            "aria-label": title});
  for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1])
    svg.append(shape("line", {x1: left, x2: side, y1: up(tick), y2: up(tick), class: "axis"}),
               shape("text", {x: left - 5, y: up(tick) + 4, "text-anchor": "end", "font-size": 11, class: "soft"},
                     Math.round(100 * tick) + " %"),
               shape("text", {x: at(tick), y: side - bottom + 15, "text-anchor": "middle", "font-size": 11, class: "soft"},
                     String(Math.round(100 * tick))));
  for (const row of rows) {
    const bar = shape("rect", {x: at(row.low) + 1, width: at(row.high) - at(row.low) - 2, y: up(row.accuracy),
                               height: Math.max(1, up(0) - up(row.accuracy)), style: "fill: var(--correct)"});
    bar.append(shape("title", {}, `mean confidence ${percent(row.confidence)}, accuracy ${percent(row.accuracy)}, ${row.count} images`));
    svg.append(bar, shape("line", {x1: at(row.low) + 1, x2: at(row.high) - 1, y1: up(row.confidence), y2: up(row.confidence),
                                   style: "stroke: var(--wrong)", "stroke-width": 2.5}));
  }
  svg.append(shape("line", {x1: at(0), y1: up(0), x2: at(1), y2: up(1), class: "axis", "stroke-dasharray": "4 3",
                            style: "stroke: var(--quiet)"}),
             shape("text", {x: (left + side) / 2, y: side - 4, "text-anchor": "middle", "font-size": 11},
                   "confidence, in %"));
  return node("div", {class: "panel"}, node("h3", {}, title), svg, node("p", {class: "quiet"},
    node("span", {class: "correct"}, "■ accuracy  "), node("span", {class: "wrong"}, "━ mean confidence")));
}

// The confusion matrix

function confusion() {
  const count = page.classes.length, cell = Math.max(15, Math.min(46, Math.floor(620 / count)));
  const font = Math.max(10, Math.min(13, cell * 0.75)), short = name =>
    name.length > 26 ? name.slice(0, 13) + "…" + name.slice(-12) : name;  // beginnings and ends tell names apart
  const room = Math.ceil(Math.max(...page.classes.map(name => short(name).length)) * font * 0.56) + 34;  // names and axis title
  const size = room + cell * count + 6;
  const svg = shape("svg", {width: size, height: size, viewBox: `0 0 ${size} ${size}`, role: "group",
                            "aria-label": "Confusion matrix"});
  const totals = page.classes.map(() => 0), readout = node("p", {class: "readout"}), below = node("div");
  for (const [row, , many] of page.matrix) totals[row] += many;
  readout.textContent = "Rows are true classes, columns predicted classes. Point at a cell to read it, click it to see its images.";
  const centre = room + cell * count / 2, title = {"text-anchor": "middle", "font-size": 13, "font-weight": 650};
  svg.append(shape("text", {...title, x: Math.max(centre, 40), y: 14}, "Predicted"),
             shape("text", {...title, transform: `translate(14 ${Math.max(centre, 40)}) rotate(-90)`}, "True"));
  page.classes.forEach((name, index) => {
    const middle = room + cell * (index + 0.5);
    svg.append(shape("text", {x: room - 6, y: middle + font * 0.35, "text-anchor": "end", "font-size": font}, short(name)),
               shape("text", {transform: `translate(${middle + font * 0.35} ${room - 6}) rotate(-90)`, "font-size": font},
                     short(name)));
  });
  for (let index = 0; index <= count; index++) {
    const at = room + cell * index;
    svg.append(shape("line", {x1: room, x2: room + cell * count, y1: at, y2: at, class: "axis"}),
               shape("line", {y1: room, y2: room + cell * count, x1: at, x2: at, class: "axis"}));
  }
  let chosen = null;
  const show = (row, column, many, box) => {
    if (chosen) chosen.classList.remove("chosen");
    chosen = box, box && box.classList.add("chosen");
    const images = page.images.filter(image => image.true === row && image.predicted === column);
    const rest = many - images.length;
    below.replaceChildren(node("h3", {}, cellText(row, column, many, totals[row])), gallery(images),
      rest > 0 ? node("p", {class: "quiet"}, `${rest} more are listed in predictions_${page.split}.csv.`) : "");
  };
  for (const [row, column, many] of page.matrix) {
    const share = many / totals[row], hit = row === column;
    const box = shape("rect", {x: room + cell * column + 1, y: room + cell * row + 1, width: cell - 2, height: cell - 2,
      class: "cell", tabindex: 0, role: "button", "data-cell": `${row},${column}`,
      style: `fill: rgb(var(--${hit ? "correct" : "wrong"}-soft) / ${(0.2 + 0.8 * share).toFixed(3)})`});
    const text = cellText(row, column, many, totals[row]);
    box.setAttribute("aria-label", text);
    for (const event of ["pointerenter", "focus"]) box.addEventListener(event, () => { readout.textContent = text; });
    box.addEventListener("click", () => show(row, column, many, box));
    box.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      show(row, column, many, box);
    });
    svg.append(box);
    if (String(many).length * font * 0.6 <= cell - 1)
      svg.append(shape("text", {x: room + cell * (column + 0.5), y: room + cell * (row + 0.5) + font * 0.35,
        "text-anchor": "middle", "font-size": font, "pointer-events": "none",
        style: share > 0.55 ? "fill: var(--on-strong)" : null}, String(many)));
  }
  const pairs = page.confused.map(([row, column, many]) => node("tr", {},
    node("td", {class: "n"}, String(many)), node("td", {},
      node("button", {class: "pair", onclick: () => { show(row, column, many, null); below.scrollIntoView({block: "nearest"}); }},
           `${page.classes[row]} predicted as ${page.classes[column]}`)), node("td", {class: "quiet"}, `of ${totals[row]}`)));
  section("Confusion matrix", node("div", {class: "scroll"}, svg), readout, below);
  if (pairs.length) section("Most confused classes", node("table", {class: "pairs"}, node("tbody", {}, ...pairs)));
}

function cellText(row, column, many, total) {
  const what = row === column ? "correctly classified" : `predicted as ${page.classes[column]}`;
  return `${page.classes[row]}: ${many} of ${total} ${what}`;
}

// The page

function summary() {
  const split = page.splits[page.split];
  main.append(
    node("p", {class: "quiet"}, page.description),
    node("p", {class: "hero"}, `${split.correct} of ${split.count}, ${percent(split.accuracy)}`),
    node("p", {}, `of the ${page.split} images are correctly classified; 95 % confidence interval `
      + `${interval(split.interval)} (Clopper-Pearson).`));
  const names = Object.keys(page.splits);
  const rows = [["accuracy", s => percent(s.accuracy)], ["95 % interval", s => s.interval ? interval(s.interval) : ""],
    ["correct", s => `${s.correct} of ${s.count}`], ["top-5", s => percent(s.top5)], ["macro F1", s => number(s.macro_f1)],
    ["loss", s => number(s.loss)], ["calibration error (ECE)", s => s.ece === undefined ? "" : percent(s.ece)],
    ["temperature", s => number(s.temperature, 3)], ["loss with temperature", s => number(s.calibrated_loss)],
    ["ECE with temperature", s => s.calibrated_ece === undefined ? "" : percent(s.calibrated_ece)]];
  const kept = rows.filter(([, value]) => names.some(name => value(page.splits[name])));
  main.append(node("div", {class: "scroll"}, node("table", {},
    node("thead", {}, node("tr", {}, node("th"), ...names.map(name => node("th", {class: "n"}, name)))),
    node("tbody", {}, ...kept.map(([name, value]) => node("tr", {}, node("td", {}, name),
      ...names.map(split => node("td", {class: "n"}, value(page.splits[split]) || ""))))))));
  if (page.splits.train) main.append(node("p", {class: "quiet"}, "train: measured during its last epoch, on augmented images and with dropout."));
}

function curves() {
  if (!page.history.length) return;
  const line = (key, name, colour, dash) => ({name, colour, dash, values: page.history.map(row => [row.epoch, row[key]])});
  const pair = what => [line("train_" + what, "train", "--correct", "6 3"), line("val_" + what, "validation", "--wrong", null)];
  section("Training curves", node("div", {class: "charts"}, chart("Loss", pair("loss"), {}),
    chart("Accuracy", pair("accuracy"), {percent: true, range: [0, 1]})));
}

function perClass() {
  const share = value => value.toFixed(3);
  const columns = [{name: "class"}, {name: "precision", n: true, format: share}, {name: "recall", n: true, format: share},
    {name: "F1", n: true, format: share}, {name: page.split, n: true},
    ...Object.keys(page.counts).filter(name => name !== page.split).map(name => ({name, n: true}))];
  const rows = page.classes.map((name, index) => {
    const scores = page.per_class[index];
    return [name, scores.precision, scores.recall, scores.f1, scores.support,
            ...Object.keys(page.counts).filter(split => split !== page.split).map(split => page.counts[split][index])];
  });
  section("Metrics by class", node("p", {class: "quiet"}, "Click a heading to sort. The last columns count images."),
          sortable(columns, rows, {class: "classes"}));
}

function predictions() {
  const chosen = ids => ids.map(id => page.images[id]);
  if (page.errors.length) section("Highest-confidence errors", gallery(chosen(page.errors)));
  if (page.least_confident.length) section("Least confident correct predictions", gallery(chosen(page.least_confident)));
  if (page.saliency.length) section("Saliency (HiResCAM)", node("p", {class: "quiet"},
    "Bright regions of the last feature map raise the logit of the predicted class."), gallery(page.saliency));
}

function calibration() {
  const charts = [reliability(page.reliability, `Uncalibrated: ECE ${percent(page.splits[page.split].ece)}`)];
  const after = page.splits[page.split].calibrated_ece;
  if (page.reliability_calibrated) charts.push(reliability(page.reliability_calibrated, `With temperature: ECE ${percent(after)}`));
  section("Calibration", node("p", {class: "quiet"}, "Of the images with a confidence of 80 %, 80 % should be correct: "
    + "each bar should reach its orange line. ECE is the expected calibration error."), node("div", {class: "charts"}, ...charts));
}

function data() {
  section("Data", list(page.data));
  if (!page.samples.length) return;
  const samples = section("Samples", node("h3", {}, "One training image per class"), gallery(page.samples, "tiny"));
  if (page.augmented.length) samples.append(
    node("h3", {}, "The same images augmented, as the network saw them in the first epoch"), gallery(page.augmented, "tiny"));
}

summary(); curves(); confusion(); perClass(); predictions(); calibration(); data();
section("Environment", list(page.environment));
