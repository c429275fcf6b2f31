// Draws the trials of a sweep.

const isFraction = !page.metric.endsWith("loss");
const measure = value => value === null ? "" : isFraction ? percent(value) : number(value);
const describe = overrides => page.keys.map(key => `${key}=${overrides[key] ?? "-"}`).join(", ") || "no overrides";
const finished = page.trials.filter(trial => trial.value !== null);

function summary() {
  const seen = new Set();
  for (const group of page.groups) {
    if (seen.has(group.dataset)) continue;
    seen.add(group.dataset);
    const {seed, ...rest} = group.overrides;
    const overrides = Object.entries(rest).map(([key, value]) => `${key}=${value}`).join(", ") || "no overrides";
    main.append(node("p", {class: "hero"}, group.validation), node("p", {},
      `is the best validation accuracy on ${group.dataset}: `, node("code", {}, overrides), `. Its test accuracy: ${group.test}.`));
  }
  const states = {};
  for (const trial of page.trials) states[trial.state] = (states[trial.state] || 0) + 1;
  main.append(node("p", {class: "quiet"}, `${page.trials.length} trials: `
    + Object.entries(states).map(([state, count]) => `${count} ${state}`).join(", ")
    + `; ranked by ${page.metric}. The best of many trials by validation is biased upwards: judge it by its test accuracy.`));
}

function leaderboard() {
  if (!page.groups.length) return;
  const keys = page.keys.filter(key => key !== "seed");
  const columns = [{name: "rank", n: true}, ...keys.map(name => ({name})), {name: "validation"}, {name: "test"}];
  const rows = page.groups.map((group, index) =>
    [index + 1, ...keys.map(key => group.overrides[key] ?? "-"), group.validation, group.test]);
  section("Leaderboard", sortable(columns, rows, {class: "board"}));
}

// The position of a setting's value, from 0 to 1, and the labels next to the axis.
function scaleOf(values) {
  const distinct = [...new Set(values)], numbers = distinct.map(Number);
  if (distinct.length > 1 && numbers.every(Number.isFinite)) {
    const low = Math.min(...numbers), high = Math.max(...numbers), log = low > 0 && high / low > 30;
    const at = value => log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    const shown = numbers.length <= 8 ? numbers : [low, log ? Math.sqrt(low * high) : (low + high) / 2, high];
    return {at: text => at(Number(text)), labels: shown.map(value => [number(value, 3), at(value)])};
  }
  distinct.sort((a, b) => String(a).localeCompare(String(b), undefined, {numeric: true}));
  const at = text => distinct.length === 1 ? 0.5 : distinct.indexOf(text) / (distinct.length - 1);
  return {at, labels: distinct.length <= 24 ? distinct.map(text => [text, at(text)]) : []};
}

function parallel() {
  if (finished.length < 2 || !page.keys.length) return;
  const gap = 170, left = 110, top = 40, height = 330, bottom = 18, right = 90;
  const width = left + gap * page.keys.length + right;
  const values = finished.map(trial => trial.value);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const good = value => page.lower_is_better ? (high - value) / span : (value - low) / span;
  const axes = page.keys.map(key => ({name: key, ...scaleOf(finished.map(trial => trial.overrides[key] ?? "-"))}));
  const ranked = [...finished].sort((a, b) => good(a.value) - good(b.value));  // lines through one level lie side by side, the best on top
  const beside = rank => ranked.length < 2 ? 0 : (rank / (ranked.length - 1) - 0.5) * 18 / (height - top - bottom);
  const rows = ranked.map((trial, rank) => [
    ...axes.map(axis => axis.at(trial.overrides[axis.name] ?? "-") + beside(rank)), (trial.value - low) / span]);
  axes.push({name: page.metric, labels: [0, 0.25, 0.5, 0.75, 1].map(share => [measure(low + share * span), share])});
  const x = index => left + gap * index, y = share => height - bottom - share * (height - top - bottom);
  const svg = shape("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Parallel coordinates"});
  const readout = node("p", {class: "readout"}), hint = "Each line is a trial; the bluer the better. Point at one.";
  readout.textContent = hint;
  ranked.forEach((trial, rank) => {
    const row = rows[rank], share = good(trial.value);
    const line = shape("polyline", {points: row.map((value, index) => `${x(index)},${y(value)}`).join(" "), fill: "none",
      class: "trial", "stroke-width": 2.2, tabindex: 0,
      style: `stroke: color-mix(in oklab, var(--correct) ${Math.round(100 * share)}%, var(--wrong)); opacity: ${0.4 + 0.6 * share}`});
    for (const event of ["pointerenter", "focus"]) line.addEventListener(event, () => {
      line.setAttribute("stroke-width", 5);
      readout.textContent = `${measure(trial.value)}: ${describe(trial.overrides)}`;
    });
    for (const event of ["pointerleave", "blur"]) line.addEventListener(event, () => {
      line.setAttribute("stroke-width", 2.2);
      readout.textContent = hint;
    });
    svg.append(line);
  });
  axes.forEach((axis, index) => {
    const last = index === axes.length - 1;
    svg.append(shape("line", {x1: x(index), x2: x(index), y1: top, y2: height - bottom, style: "stroke: var(--ink)"}),
               shape("text", {x: x(index), y: 16, "text-anchor": "middle", "font-size": 13, "font-weight": 650}, axis.name));
    for (const [text, share] of axis.labels)
      svg.append(shape("text", {x: x(index) + (last ? 8 : -8), y: y(share) + 4, "text-anchor": last ? "start" : "end",
                                "font-size": 12, class: "halo"}, short(String(text))));
  });
  section("Parallel coordinates", node("div", {class: "scroll"}, svg), readout);
}

const short = text => text.length > 18 ? text.slice(0, 9) + "…" + text.slice(-8) : text;

function importance() {
  if (!page.importance.length) return;
  const rows = page.importance.map(([key, share]) => node("tr", {}, node("td", {}, key), node("td", {class: "n"}, percent(share, 0)),
    node("td", {}, shape("svg", {width: 220, height: 14, role: "img", "aria-label": percent(share, 0)},
      shape("rect", {width: 220, height: 14, rx: 3, style: "fill: var(--line)"}),
      shape("rect", {width: Math.max(1, 220 * share), height: 14, rx: 3, style: "fill: var(--correct)"})))));
  section("Importance of settings", node("p", {class: "quiet"}, `Share of the variance of ${page.metric} that each setting `
    + "alone explains beyond chance (epsilon squared). Settings that matter only in combination score low."),
    node("table", {}, node("tbody", {}, ...rows)));
}

function sizes() {
  if (!page.sizes.length) return;
  const colours = ["--correct", "--wrong", "--focus", "--ink"];
  const lines = page.sizes.slice(0, 8).map((series, index) => ({name: series.name || "validation", colour: colours[index % 4],
    dash: index < 4 ? null : "6 3", values: series.points.map(([count, value]) => [count, value])}));
  section("Accuracy by number of training images", node("p", {class: "quiet"}, "More data would help where a curve still "
    + "rises."), node("div", {class: "charts"}, chart("Validation accuracy", lines, {percent: true, x: "training images"})));
}

function trials() {
  const columns = [{name: "trial"}, {name: "state"}, {name: page.metric, n: true, format: value => value < -1e300 ? "" : measure(value)},
    {name: "95 % interval"}, {name: "epochs", n: true}, {name: "seconds", n: true, format: value => value.toFixed(0)}, {name: "error"}];
  const rows = page.trials.map(trial => [trial.folder, trial.state, trial.value === null ? -1.7e308 : trial.value,
    trial.interval ? interval(trial.interval) : "", trial.epochs, trial.seconds, trial.error || ""]);
  section("All trials", sortable(columns, rows, {class: "trials"}));
}

summary(); leaderboard(); parallel(); importance(); sizes(); trials();
