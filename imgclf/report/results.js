// Draws the results of a run.

// Images

function figure(image, kind = "") {
  const correct = image.true === image.predicted, caption = node("figcaption", {});
  if (image.predicted !== undefined) {
    const share = image.probability > 0.9995 ? "> 99.9 %" : percent(image.probability);
    const name = page.classes[image.predicted], slash = image.file.lastIndexOf("/") + 1;
    caption.append(node("b", {class: correct ? "correct" : "wrong"}, cut(`${correct ? "✓" : "✗"} ${name}`)));
    if (!correct) caption.append(cut(`true: ${page.classes[image.true]}`));
    caption.append(node("span", {class: "line"}, node("span", {}, share), cut(image.file.slice(slash), "quiet", image.file)));
  } else caption.append(cut(image.caption || ""));
  const pixels = src => node("img", {src, alt: image.file || image.caption || "", class: page.tiny_pixels ? "pixels" : null});
  const shown = image.overlay ? node("div", {class: "pair"}, pixels(image.src), pixels(image.overlay)) : pixels(image.src);
  return node("figure", {class: kind || null, title: topClasses(image)}, shown, caption);
}

function topClasses(image) {
  return image.top ? [image.file, ...image.top.map(([index, p]) => `${page.classes[index]} ${percent(p)}`)].join("\n") : null;
}

function gallery(images, kind = "") {
  return node("div", {class: `gallery ${kind}`.trim()}, ...images.map(image => figure(image, kind)));
}

// As many columns as fit, or some fewer where the last row is then fuller: 24 images are 8 + 8 + 8 rather than 10 + 10 + 4.
function columnsFor(count, most) {
  if (count <= most) return Math.max(1, count);
  const cost = columns => Math.log(most / columns) + 2 * ((columns - count % columns) % columns) / columns;
  let best = most;
  for (let columns = most; columns >= Math.max(2, 0.6 * most); columns--) if (cost(columns) < cost(best)) best = columns;
  return best;
}

function arrangeGalleries() {
  for (const element of document.querySelectorAll(".gallery")) {
    const least = Number(getComputedStyle(element).getPropertyValue("--least")), most = Math.floor((element.clientWidth + 10) / (least + 10));
    element.style.setProperty("--columns", columnsFor(element.children.length, Math.max(1, most)));
  }
}

function reliability(rows, title) {
  const side = 250, left = 44, bottom = 34, top = 8, width = 300;
  const at = value => left + value * (side - left), up = value => side - bottom - value * (side - bottom - top);
  const svg = shape("svg", {viewBox: `0 0 ${width} ${side}`, width: "100%", style: "max-width: 340px", role: "img",
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

// The page

const whole = value => value === undefined || value === null ? "" : value.toLocaleString("en");
const fixed = (value, digits) => value === undefined || value === null ? "" : value.toFixed(digits);
const share = value => value === undefined || value === null ? "" : percent(value);

function summary() {
  const split = page.splits[page.split];
  main.append(
    node("p", {class: "quiet"}, page.description),
    node("p", {class: "hero"}, `${whole(split.correct)} of ${whole(split.count)}, ${percent(split.accuracy)}`),
    node("p", {}, `of the ${page.split} images are correctly classified; 95 % confidence interval `
      + `${interval(split.interval)} (Clopper-Pearson).`));
}

function results() {
  const names = Object.keys(page.splits);
  const rows = [["accuracy", s => share(s.accuracy)], ["95 % interval", s => s.interval ? interval(s.interval) : ""],
    ["correct", s => whole(s.correct)], ["images", s => whole(s.count)], ["top-5", s => share(s.top5)],
    ["macro F1", s => fixed(s.macro_f1, 4)], ["loss", s => fixed(s.loss, 4)], ["calibration error (ECE)", s => share(s.ece)],
    ["temperature", s => fixed(s.temperature, 3)], ["loss with temperature", s => fixed(s.calibrated_loss, 4)],
    ["ECE with temperature", s => share(s.calibrated_ece)]];
  const kept = rows.filter(([, value]) => names.some(name => value(page.splits[name])));
  return section("Results", node("table", {class: "full"},
    node("thead", {}, node("tr", {}, node("th"), ...names.map(name => node("th", {class: "n"}, name)))),
    node("tbody", {}, ...kept.map(([name, value]) => node("tr", {}, node("td", {}, name),
      ...names.map(split => node("td", {class: "n"}, value(page.splits[split]))))))),
    page.notes.length ? node("ul", {class: "notes"}, ...page.notes.map(note => node("li", {}, note))) : null);
}

function curves() {
  if (!page.history.length) return null;
  const line = (key, name, colour, dash) => ({name, colour, dash, values: page.history.map(row => [row.epoch, row[key]])});
  const pair = what => [line("train_" + what, "train", "--correct", "6 3"), line("val_" + what, "validation", "--wrong", null)];
  const size = {width: 300, height: 230, mark: page.best_epoch};
  return section("Training curves", node("div", {class: "charts"}, chart("Loss", pair("loss"), size),
    chart("Accuracy", pair("accuracy"), {...size, percent: true, range: [0, 1]})),
    page.best_epoch ? node("ul", {class: "notes"}, node("li", {}, `Dotted: epoch ${page.best_epoch}, whose weights were kept as the best.`)) : null);
}

function network() {
  if (!page.network.length) return null;
  const cell = (name, value, index) => node(name, {class: index > 1 ? "n" : index ? "cut" : null, title: index === 1 ? value : null},
    index === 2 ? value.replaceAll(" x ", "×") : value);
  const row = (name, values) => node("tr", {}, ...values.map((value, index) => cell(name, value, index)));
  const [header, ...parts] = page.network, [all, parameters, , ...sums] = parts.pop();
  return section("Network", node("table", {class: "full network"}, node("thead", {}, row("th", header)),
    node("tbody", {}, ...parts.map(part => row("td", part))), node("tfoot", {}, node("tr", {},
      node("td", {}, all), node("td", {colspan: 2}, parameters), ...sums.map(sum => node("td", {class: "n"}, sum))))));
}

function perClass() {
  const three = value => value.toFixed(3), others = Object.keys(page.counts).filter(name => name !== page.split);
  const heads = [{name: "class", cut: true}, {name: "precision", n: true, format: three}, {name: "recall", n: true, format: three},
    {name: "F1", n: true, format: three}, ...[page.split, ...others].map(name => ({name, n: true, format: whole}))];
  const rows = page.classes.map((name, index) => {
    const scores = page.per_class[index];
    return [name, scores.precision, scores.recall, scores.f1, scores.support, ...others.map(split => page.counts[split][index])];
  });
  return section("Metrics by class", node("p", {class: "quiet"}, `${[page.split, ...others].join(", ")}: number of images. `,
    node("span", {class: "hint"}, "Click a heading to sort.")),
    sortable(heads, rows, {class: "classes full"}, page.averages.map(row => [...row, ...others.map(() => "")])));
}

function predictions() {
  const chosen = ids => gallery(ids.map(id => page.images[id]));
  return [page.errors.length ? section("Highest-confidence errors", chosen(page.errors)) : null,
    page.least_confident.length ? section("Least confident correct predictions", chosen(page.least_confident)) : null];
}

function saliency() {
  return page.saliency.length ? section("Saliency (HiResCAM)", node("p", {class: "quiet"},
    "Bright regions of the last feature map raise the logit of the predicted class."), gallery(page.saliency, "wide")) : null;
}

function calibration() {
  const before = `ECE ${percent(page.splits[page.split].ece)}`, after = page.splits[page.split].calibrated_ece;
  const charts = page.reliability_calibrated ? [reliability(page.reliability, `Without temperature: ${before}`),
    reliability(page.reliability_calibrated, `With temperature: ECE ${percent(after)}`)] : [reliability(page.reliability, before)];
  return section("Calibration", node("p", {class: "quiet"}, "Of the images with a confidence of 80 %, 80 % should be correct: "
    + "each bar should reach its orange line. ECE is the expected calibration error."), node("div", {class: "charts"}, ...charts));
}

function samples() {
  if (!page.samples.length) return;
  const which = page.samples.length < page.classes.length ? `One training image of each of ${page.samples.length} classes` : "One training image per class";
  section("Samples", node("h3", {}, which), gallery(page.samples, "tiny"), ...(page.augmented.length
    ? [node("h3", {}, "The same images augmented, as in the first epoch"), gallery(page.augmented, "tiny")] : []));
}

summary();
columns([results()], [curves()]);
const redrawMatrix = confusion();
const smaller = [saliency(), calibration()], isFew = page.classes.length <= 24;  // below the shorter of two columns
columns([...predictions(), ...(isFew ? [] : smaller)], [perClass(), ...(isFew ? smaller : [])]);
columns([network()], [section("Data", list(page.data)), section("Environment", list(page.environment))]);
samples();
const arrange = () => { redrawMatrix(), arrangeGalleries(); };  // once more where the window's width changes
arrange();
addEventListener("resize", arrange);
