// Draws the facts of a sweep.

const isAccuracy = !facts.metric.endsWith("loss");
const measure = value => value === null ? "" : isAccuracy ? percent(value) : number(value);
const described = choices => facts.keys.map(key => `${key}=${choices[key] ?? "-"}`).join(", ") || "no overrides";
const finished = facts.trials.filter(trial => trial.value !== null);

function summary() {
  const seen = new Set();
  for (const standing of facts.standings) {
    if (seen.has(standing.dataset)) continue;
    seen.add(standing.dataset);
    const {seed, ...rest} = standing.choices;
    const said = Object.entries(rest).map(([key, value]) => `${key}=${value}`).join(", ") || "no overrides";
    main.append(node("p", {class: "hero"}, standing.validation), node("p", {},
      `of validation is the best on ${standing.dataset}: `, node("code", {}, said), `. Its test pictures: ${standing.test}.`));
  }
  const states = {};
  for (const trial of facts.trials) states[trial.state] = (states[trial.state] || 0) + 1;
  main.append(node("p", {class: "quiet"}, `${facts.trials.length} trials: `
    + Object.entries(states).map(([state, count]) => `${count} ${state}`).join(", ")
    + `; ranked by ${facts.metric}. Whoever picks the best of many by a figure is flattered by it: judge by its test.`));
}

function leaderboard() {
  if (!facts.standings.length) return;
  const keys = facts.keys.filter(key => key !== "seed");
  const columns = [{name: "rank", n: true}, ...keys.map(name => ({name})), {name: "validation"}, {name: "test"}];
  const rows = facts.standings.map((standing, index) =>
    [index + 1, ...keys.map(key => standing.choices[key] ?? "-"), standing.validation, standing.test]);
  section("Leaderboard", sortable(columns, rows, {class: "board"}));
}

// A scale: where a setting's value lies, from 0 to 1, and what to write beside the axis.
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
  if (finished.length < 2 || !facts.keys.length) return;
  const gap = 170, left = 110, top = 40, height = 330, bottom = 18, right = 90;
  const width = left + gap * facts.keys.length + right;
  const values = finished.map(trial => trial.value);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const good = value => facts.lower_is_better ? (high - value) / span : (value - low) / span;
  const axes = facts.keys.map(key => ({name: key, ...scaleOf(finished.map(trial => trial.choices[key] ?? "-"))}));
  const ranked = [...finished].sort((a, b) => good(a.value) - good(b.value));  // lines of one level lie side by side, the best on top
  const beside = rank => ranked.length < 2 ? 0 : (rank / (ranked.length - 1) - 0.5) * 18 / (height - top - bottom);
  const rows = ranked.map((trial, rank) => [
    ...axes.map(axis => axis.at(trial.choices[axis.name] ?? "-") + beside(rank)), (trial.value - low) / span]);
  axes.push({name: facts.metric, labels: [0, 0.25, 0.5, 0.75, 1].map(share => [measure(low + share * span), share])});
  const x = index => left + gap * index, y = share => height - bottom - share * (height - top - bottom);
  const svg = shape("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "parallel coordinates"});
  const says = node("p", {class: "says"}), hint = "A line is a trial, the bluer the better. Point at one.";
  says.textContent = hint;
  ranked.forEach((trial, rank) => {
    const row = rows[rank], share = good(trial.value);
    const line = shape("polyline", {points: row.map((value, index) => `${x(index)},${y(value)}`).join(" "), fill: "none",
      class: "trial", "stroke-width": 2.2, tabindex: 0,
      style: `stroke: color-mix(in oklab, var(--right) ${Math.round(100 * share)}%, var(--wrong)); opacity: ${0.4 + 0.6 * share}`});
    for (const event of ["pointerenter", "focus"]) line.addEventListener(event, () => {
      line.setAttribute("stroke-width", 5);
      says.textContent = `${measure(trial.value)}: ${described(trial.choices)}`;
    });
    for (const event of ["pointerleave", "blur"]) line.addEventListener(event, () => {
      line.setAttribute("stroke-width", 2.2);
      says.textContent = hint;
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
  section("Which choices went with what", node("div", {class: "scroll"}, svg), says);
}

const short = text => text.length > 18 ? text.slice(0, 9) + "…" + text.slice(-8) : text;

function importance() {
  if (!facts.importance.length) return;
  const rows = facts.importance.map(([key, share]) => node("tr", {}, node("td", {}, key), node("td", {class: "n"}, percent(share, 0)),
    node("td", {}, shape("svg", {width: 220, height: 14, role: "img", "aria-label": percent(share, 0)},
      shape("rect", {width: 220, height: 14, rx: 3, style: "fill: var(--line)"}),
      shape("rect", {width: Math.max(1, 220 * share), height: 14, rx: 3, style: "fill: var(--right)"})))));
  section("What mattered", node("p", {class: "quiet"}, `The share of the differences in ${facts.metric} that each setting alone `
    + "explains, chance taken off (epsilon squared). Settings that matter only together show little here."),
    node("table", {}, node("tbody", {}, ...rows)));
}

function sizes() {
  if (!facts.sizes.length) return;
  const colours = ["--right", "--wrong", "--focus", "--ink"];
  const lines = facts.sizes.slice(0, 8).map((series, index) => ({name: series.name || "validation", colour: colours[index % 4],
    dash: index < 4 ? null : "6 3", values: series.points.map(([count, value]) => [count, value])}));
  section("Would more data help?", node("p", {class: "quiet"}, "Validation accuracy against the number of training pictures: a "
    + "curve that still rises says yes."), node("div", {class: "charts"}, chart("Validation accuracy", lines,
    {percent: true, x: "training pictures"})));
}

function trials() {
  const columns = [{name: "trial"}, {name: "state"}, {name: facts.metric, n: true, format: value => value < -1e300 ? "" : measure(value)},
    {name: "95 % interval"}, {name: "epochs", n: true}, {name: "seconds", n: true, format: value => value.toFixed(0)}, {name: "error"}];
  const rows = facts.trials.map(trial => [trial.folder, trial.state, trial.value === null ? -1.7e308 : trial.value,
    trial.interval ? trial.interval.map(value => (100 * value).toFixed(1)).join("–") + "\u00a0%" : "", trial.epochs, trial.seconds, trial.error || ""]);
  section("All trials", sortable(columns, rows, {class: "trials"}));
}

summary(); leaderboard(); parallel(); importance(); sizes(); trials();
