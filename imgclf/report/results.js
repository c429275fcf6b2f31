// Draws the facts of a run.

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
