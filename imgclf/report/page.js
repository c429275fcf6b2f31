"use strict";
// Draws the facts of a run. Text gets into the page by textContent alone: a class may be called "<img onerror=...>".
const facts = JSON.parse(document.getElementById("facts").textContent);
const main = document.querySelector("main");
const SVG = "http://www.w3.org/2000/svg";
const percent = (share, digits = 1) => (100 * share).toFixed(digits) + " %";
const number = (value, digits = 4) => value === null || value === undefined ? "" : String(+(+value).toPrecision(digits));

function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return dress(made, attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

function dress(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

function section(title, ...children) {
  const made = node("section", {}, node("h2", {}, title), ...children);
  main.append(made);
  return made;
}

function list(pairs) {
  return node("dl", {}, ...pairs.flatMap(([key, value]) => [node("dt", {}, key), node("dd", {}, String(value))]));
}

// Pictures

function figure(picture, kind = "") {
  const right = picture.true === picture.predicted;
  const caption = node("figcaption", {});
  if (picture.predicted !== undefined) {
    const share = picture.probability > 0.9995 ? "> 99.9 %" : percent(picture.probability, picture.probability > 0.995 ? 1 : 0);
    const said = `${facts.classes[picture.predicted]} ${share}`;
    caption.append(node("b", {class: right ? "right" : "wrong"}, (right ? "✓ " : "✗ ") + said));
    if (!right) caption.append(node("br"), `is ${facts.classes[picture.true]}`);
    caption.append(node("br"), node("span", {class: "quiet"}, picture.file));
  } else caption.append(picture.caption || "");
  const sources = picture.overlay ? [picture.src, picture.overlay] : [picture.src];
  const images = sources.map(src => node("img", {src, alt: picture.file || picture.caption || "", loading: "lazy",
                                                 class: facts.tiny_pixels ? "pixels" : null}));
  if (images.length > 1) images.splice(1, 0, " ");
  return node("figure", {class: picture.overlay ? "wide" : kind || null, title: tops(picture)}, ...images, caption);
}

function tops(picture) {
  return picture.top ? picture.top.map(([index, p]) => `${facts.classes[index]} ${percent(p)}`).join("\n") : null;
}

function gallery(pictures, kind) {
  return node("div", {class: "gallery"}, ...pictures.map(picture => figure(picture, kind)));
}

// Charts

function chart(title, lines, options) {
  const width = 460, height = 250, left = 48, right = 12, top = 12, bottom = 34;
  const points = lines.flatMap(line => line.values.filter(([, y]) => y !== null));
  if (!points.length) return null;
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const lowX = Math.min(...xs), highX = Math.max(...xs, lowX + 1);
  const [lowY, highY] = options.range || [Math.min(0, ...ys), Math.max(...ys) * 1.05 || 1];
  const x = value => left + (value - lowX) / (highX - lowX) * (width - left - right);
  const y = value => height - bottom - (value - lowY) / (highY - lowY) * (height - top - bottom);
  const svg = shape("svg", {viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": title});
  for (const tick of ticks(lowY, highY, 5)) {
    svg.append(shape("line", {x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "axis"}),
               shape("text", {x: left - 6, y: y(tick) + 4, "text-anchor": "end", "font-size": 12, class: "soft"},
                     options.percent ? Math.round(100 * tick) + " %" : number(tick, 3)));
  }
  for (const tick of ticks(lowX, highX, 8).filter(Number.isInteger))
    svg.append(shape("text", {x: x(tick), y: height - bottom + 17, "text-anchor": "middle", "font-size": 12, class: "soft"},
                     String(tick)));
  svg.append(shape("text", {x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle", "font-size": 12}, "epoch"));
  for (const line of lines) {
    const known = line.values.filter(([, value]) => value !== null);
    svg.append(shape("polyline", {points: known.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), fill: "none",
                                  style: `stroke: var(${line.colour})`, "stroke-width": 2, "stroke-dasharray": line.dash}));
    if (known.length <= 40) for (const [a, b] of known)
      svg.append(shape("circle", {cx: x(a), cy: y(b), r: 3, style: `fill: var(${line.colour})`}));
  }
  const mark = shape("line", {y1: top, y2: height - bottom, class: "axis", visibility: "hidden"});
  const says = node("div", {class: "quiet says"});
  const rest = () => {
    mark.setAttribute("visibility", "hidden");
    says.replaceChildren(...lines.flatMap(line => [
      node("span", {style: `color: var(${line.colour})`}, `${line.dash ? "╌╌" : "──"} ${line.name}  `)]));
  };
  svg.append(mark);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const wanted = lowX + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (highX - lowX);
    const at = xs.reduce((best, value) => Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best);
    mark.setAttribute("x1", x(at)), mark.setAttribute("x2", x(at)), mark.setAttribute("visibility", "visible");
    says.textContent = `epoch ${at}: ` + lines.map(line => {
      const [, value] = line.values.find(([a]) => a === at) || [at, null];
      return value === null ? null : `${line.name} ${options.percent ? percent(value) : number(value)}`;
    }).filter(Boolean).join(", ");
  });
  svg.addEventListener("pointerleave", rest);
  rest();
  return node("div", {class: "panel"}, node("h3", {}, title), svg, says);
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(value => value >= raw);
  const made = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step)
    made.push(+tick.toPrecision(10));
  return made;
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
                               height: Math.max(1, up(0) - up(row.accuracy)), style: "fill: var(--right)"});
    bar.append(shape("title", {}, `said ${percent(row.confidence)}, right ${percent(row.accuracy)}, ${row.count} pictures`));
    svg.append(bar, shape("line", {x1: at(row.low) + 1, x2: at(row.high) - 1, y1: up(row.confidence), y2: up(row.confidence),
                                   style: "stroke: var(--wrong)", "stroke-width": 2.5}));
  }
  svg.append(shape("line", {x1: at(0), y1: up(0), x2: at(1), y2: up(1), class: "axis", "stroke-dasharray": "4 3",
                            style: "stroke: var(--quiet)"}),
             shape("text", {x: (left + side) / 2, y: side - 4, "text-anchor": "middle", "font-size": 11},
                   "probability of what it said, in %"));
  return node("div", {class: "panel"}, node("h3", {}, title), svg, node("p", {class: "quiet"},
    node("span", {class: "right"}, "■ share that is right  "), node("span", {class: "wrong"}, "━ mean probability")));
}

// The confusion matrix

function confusion() {
  const count = facts.classes.length, cell = Math.max(15, Math.min(46, Math.floor(620 / count)));
  const font = Math.max(10, Math.min(13, cell * 0.75)), short = name =>
    name.length > 26 ? name.slice(0, 13) + "…" + name.slice(-12) : name;  // beginnings and ends tell names apart
  const room = Math.ceil(Math.max(...facts.classes.map(name => short(name).length)) * font * 0.56) + 14;
  const size = room + cell * count + 6;
  const svg = shape("svg", {width: size, height: size, viewBox: `0 0 ${size} ${size}`, role: "group",
                            "aria-label": "confusion matrix"});
  const totals = facts.classes.map(() => 0), says = node("p", {class: "says"}), below = node("div");
  for (const [row, , many] of facts.matrix) totals[row] += many;
  says.textContent = "Rows are what pictures show, columns what the network said. Point at a cell, or choose it to see its pictures.";
  facts.classes.forEach((name, index) => {
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
    const pictures = facts.pictures.filter(picture => picture.true === row && picture.predicted === column);
    const rest = many - pictures.length;
    below.replaceChildren(node("h3", {}, cellSays(row, column, many, totals[row])), gallery(pictures),
      rest > 0 ? node("p", {class: "quiet"}, `${rest} more aren't in this page; predictions_${facts.split}.csv has them.`) : "");
  };
  for (const [row, column, many] of facts.matrix) {
    const share = many / totals[row], hit = row === column;
    const box = shape("rect", {x: room + cell * column + 1, y: room + cell * row + 1, width: cell - 2, height: cell - 2,
      class: "cell", tabindex: 0, role: "button", "data-cell": `${row},${column}`,
      style: `fill: rgb(var(--${hit ? "right" : "wrong"}-soft) / ${(0.2 + 0.8 * share).toFixed(3)})`});
    const text = cellSays(row, column, many, totals[row]);
    box.setAttribute("aria-label", text);
    for (const event of ["pointerenter", "focus"]) box.addEventListener(event, () => { says.textContent = text; });
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
  const pairs = facts.pairs.map(([row, column, many]) => node("tr", {},
    node("td", {class: "n"}, String(many)), node("td", {},
      node("button", {class: "pair", onclick: () => { show(row, column, many, null); below.scrollIntoView({block: "nearest"}); }},
           `${facts.classes[row]} taken for ${facts.classes[column]}`)), node("td", {class: "quiet"}, `of ${totals[row]}`)));
  section("What was taken for what", node("div", {class: "scroll"}, svg), says, below);
  if (pairs.length) section("Most confused", node("table", {class: "pairs"}, node("tbody", {}, ...pairs)));
}

function cellSays(row, column, many, total) {
  const what = row === column ? "recognised" : `taken for ${facts.classes[column]}`;
  return `${facts.classes[row]}: ${many} of ${total} ${what}`;
}

// Tables

function sortable(columns, rows, attributes = {}) {
  const body = node("tbody"), heads = [];
  const fill = (column, down) => {
    const sorted = [...rows].sort((a, b) => (typeof a[column] === "number" ? a[column] - b[column]
      : String(a[column]).localeCompare(String(b[column]), undefined, {numeric: true})) * (down ? -1 : 1));
    body.replaceChildren(...sorted.map(row => node("tr", {}, ...row.map((value, index) => columns[index].n
      ? node("td", {class: "n"}, columns[index].format ? columns[index].format(value) : String(value))
      : node("td", {}, String(value))))));
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== column ? "none" : down ? "descending" : "ascending"));
  };
  columns.forEach((column, index) => {
    const choose = () => {  // a first click puts the lowest score on top, as the eye seeks the worst; a second turns it round
      fill(index, head.getAttribute("aria-sort") === "ascending");
    };
    const head = node("th", {class: column.n ? "n" : null, "aria-sort": "none"}, node("button", {onclick: choose}, column.name));
    heads.push(head);
  });
  fill(0, false);
  return node("div", {class: "scroll"}, node("table", attributes, node("thead", {}, node("tr", {}, ...heads)), body));
}

// The page

function summary() {
  const split = facts.splits[facts.split];
  main.append(
    node("p", {class: "quiet"}, facts.about),
    node("p", {class: "hero"}, `${split.correct} of ${split.count}, ${percent(split.accuracy)}`),
    node("p", {}, `of the ${facts.split} pictures are classified rightly; 95 % confidence interval `
      + `${(100 * split.interval[0]).toFixed(1)}–${(100 * split.interval[1]).toFixed(1)} % (Clopper-Pearson).`));
  const names = Object.keys(facts.splits);
  const rows = [["accuracy", s => percent(s.accuracy)], ["95 % interval", s => s.interval ? s.interval.map(v => percent(v)).join(" – ") : ""],
    ["right", s => `${s.correct} of ${s.count}`], ["top-5", s => percent(s.top5)], ["macro F1", s => number(s.macro_f1)],
    ["loss", s => number(s.loss)], ["calibration error (ECE)", s => s.ece === undefined ? "" : percent(s.ece)],
    ["… with temperature", s => s.calibrated_ece === undefined ? null : `${percent(s.calibrated_ece)}, loss ${number(s.calibrated_loss)}, T ${number(s.temperature, 3)}`]];
  const kept = rows.filter(([, value]) => names.some(name => value(facts.splits[name])));
  main.append(node("div", {class: "scroll"}, node("table", {},
    node("thead", {}, node("tr", {}, node("th"), ...names.map(name => node("th", {class: "n"}, name)))),
    node("tbody", {}, ...kept.map(([name, value]) => node("tr", {}, node("td", {}, name),
      ...names.map(split => node("td", {class: "n"}, value(facts.splits[split]) || ""))))))));
  if (facts.splits.train) main.append(node("p", {class: "quiet"}, "train: as met during its last epoch, augmented and with dropout."));
}

function curves() {
  if (!facts.history.length) return;
  const line = (key, name, colour, dash) => ({name, colour, dash, values: facts.history.map(row => [row.epoch + 1, row[key]])});
  const pair = what => [line("train_" + what, "train", "--right", "6 3"), line("val_" + what, "validation", "--wrong", null)];
  section("How it learned", node("div", {class: "charts"}, chart("Loss", pair("loss"), {}),
    chart("Accuracy", pair("accuracy"), {percent: true, range: [0, 1]})));
}

function perClass() {
  const share = value => value.toFixed(3);
  const columns = [{name: "class"}, {name: "precision", n: true, format: share}, {name: "recall", n: true, format: share},
    {name: "F1", n: true, format: share}, {name: facts.split, n: true},
    ...Object.keys(facts.counts).filter(name => name !== facts.split).map(name => ({name, n: true}))];
  const rows = facts.classes.map((name, index) => {
    const scores = facts.per_class[index];
    return [name, scores.precision, scores.recall, scores.f1, scores.support,
            ...Object.keys(facts.counts).filter(split => split !== facts.split).map(split => facts.counts[split][index])];
  });
  section("Class by class", node("p", {class: "quiet"}, `Choose a heading to sort. The last columns count pictures.`),
          sortable(columns, rows, {class: "classes"}));
}

function pictures() {
  const chosen = ids => ids.map(id => facts.pictures[id]);
  if (facts.worst.length) section("The worst mistakes", node("p", {class: "quiet"}, "The surest it was of something wrong."),
                                  gallery(chosen(facts.worst)));
  if (facts.least.length) section("The least certain hits", gallery(chosen(facts.least)));
  if (facts.explained.length) section("Why did it say that?", node("p", {class: "quiet"},
    "Bright is where the network found what speaks for the class that it said (HiResCAM on its last feature map)."), gallery(facts.explained));
}

function calibration() {
  const charts = [reliability(facts.reliability, `As it is: ECE ${percent(facts.splits[facts.split].ece)}`)];
  const after = facts.splits[facts.split].calibrated_ece;
  if (facts.reliability_calibrated) charts.push(reliability(facts.reliability_calibrated, `With temperature: ECE ${percent(after)}`));
  section("Can its probabilities be trusted?", node("p", {class: "quiet"}, "Of pictures for which it says 80 %, 80 % should be "
    + "right: the bars should reach the orange lines."), node("div", {class: "charts"}, ...charts));
}

function data() {
  const made = section("The data", list(facts.data));
  if (facts.samples.length) made.append(node("h3", {}, "A training picture of each class"), gallery(facts.samples, "tiny"));
  if (facts.augmented.length) made.append(node("h3", {}, "What the network really saw in the first epoch: augmented, at its own size"),
                                          gallery(facts.augmented, "tiny"));
}

summary(); curves(); confusion(); perClass(); pictures(); calibration(); data();
section("How it was made", list(facts.environment));
