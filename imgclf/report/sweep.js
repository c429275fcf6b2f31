// Draws the trials of a sweep.

const isFraction = !page.metric.endsWith("loss");
const measure = value => value === null ? "" : isFraction ? percent(value) : number(value);
const short = text => text.length > 18 ? text.slice(0, 9) + "…" + text.slice(-8) : text;
const link = trial => node("a", {href: trial.href, title: trial.folder}, trial.name);
const unbroken = text => text.replaceAll("-", "\u2011");  // an interval stays in one line
const seeds = page.groups.some(group => group.trials > 1);

function summary() {
  for (const winner of page.winners) {
    const {group} = winner, several = group.trials > 1;
    main.append(node("div", {class: "winner"}, node("p", {class: "hero"}, unbroken(group.validation)),
      node("p", {}, `is the best validation accuracy on ${winner.dataset}: `, several ? node("b", {}, group.name) : link(winner),
        `. Its test accuracy: ${group.test}.`),
      several ? node("p", {}, "The best of its trials: ", link(winner), ".") : null,
      winner.command ? node("pre", {class: "copy"}, winner.command) : null));
  }
  const states = {};
  for (const trial of [...page.trials, ...page.unfinished]) states[trial.state] = (states[trial.state] || 0) + 1;
  main.append(node("p", {class: "quiet"}, `${page.trials.length + page.unfinished.length} trials: `
    + Object.entries(states).map(([state, count]) => `${count} ${state}`).join(", ")
    + `; ranked by ${page.metric}. The best of many trials by validation is biased upwards: judge it by its test accuracy.`));
}

// A table that becomes cards on a phone. A row is {cells: [text or node], sort: [a number or text per cell], rank}.
function board(heads, rows, kind) {
  const body = node("tbody"), buttons = [];
  const sort = (column, down) => {
    const compare = (a, b) => typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
    const sorted = [...rows].sort((a, b) => compare(a.sort[column], b.sort[column]) * (down ? -1 : 1));
    body.replaceChildren(...sorted.map(row => node("tr", {}, ...row.cells.map((cell, index) => node("td",
      {class: heads[index].kind, "data-label": heads[index].kind === "name" ? row.rank : heads[index].name}, cell)))));
    buttons.forEach((head, index) =>
      head.setAttribute("aria-sort", index !== column ? "none" : down ? "descending" : "ascending"));
  };
  heads.forEach((head, index) => {
    const button = node("th", {class: head.kind, "aria-sort": "none"}, node("button",
      {onclick: () => sort(index, button.getAttribute("aria-sort") === "ascending")}, head.name));
    buttons.push(button);
  });
  sort(0, false);
  return node("table", {class: `board ${kind}`}, node("thead", {}, node("tr", {}, ...buttons)), body);
}

function leaderboard() {
  if (!seeds) return;
  const heads = [{name: "rank", kind: "n rank"}, {name: "settings", kind: "name"}, {name: "validation"}, {name: "test"}];
  const rows = page.groups.map(group => ({rank: group.rank, cells: [group.rank, group.name, group.validation, group.test],
    sort: [group.rank, group.name, group.value, group.test]}));
  section("Leaderboard", node("p", {class: "quiet"}, "Mean ± standard deviation over seeds."), board(heads, rows, "groups"));
}

function trials() {
  if (page.trials.length) {
    const accuracy = page.metric === "val_accuracy" ? [] : [{name: page.metric, kind: "n"}];
    const heads = [{name: "rank", kind: "n rank"}, {name: "trial", kind: "name"}, ...accuracy, {name: "validation"},
      {name: "test"}, {name: "epochs", kind: "n"}, {name: "seconds", kind: "n"}];
    const rows = page.trials.map(trial => {
      const epochs = trial.state === "pruned" ? `${trial.epochs}, pruned` : trial.epochs;
      const value = accuracy.length ? [measure(trial.value)] : [];
      return {rank: trial.rank, cells: [trial.rank, link(trial), ...value, unbroken(trial.validation), unbroken(trial.test), epochs, trial.seconds.toFixed(0)],
        sort: [trial.rank, trial.name, ...value.map(() => trial.value), trial.value, trial.test_accuracy ?? -1, trial.epochs, trial.seconds]};
    });
    section("Trials", node("p", {class: "quiet"}, "In brackets: exact 95 % intervals."), board(heads, rows, "trials"));
  }
  if (page.unfinished.length) section("Not finished", node("ul", {class: "unfinished"}, ...page.unfinished.map(trial =>
    node("li", {}, link(trial), node("br"), node("span", {class: trial.state === "failed" ? "wrong" : "quiet"},
      `${trial.state} after ${trial.epochs} epochs, ${trial.seconds.toFixed(0)} s`), trial.error ? `: ${trial.error}` : ""))));
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

// Axes stand side by side where the window has room for them, else one below the other.
function parallel() {
  if (page.trials.length < 2 || !page.keys.length) return;
  const values = page.trials.map(trial => trial.value);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const good = value => page.lower_is_better ? (high - value) / span : (value - low) / span;
  const axes = page.keys.map(([key, name]) => ({key, name, ...scaleOf(page.trials.map(trial => trial.overrides[key] ?? "-"))}));
  const ranked = [...page.trials].sort((a, b) => good(a.value) - good(b.value));  // lines through one level lie side by side, the best on top
  const rows = ranked.map((trial, rank) => [
    ...axes.map(axis => axis.at(trial.overrides[axis.key] ?? "-") + (ranked.length < 2 ? 0 : (rank / (ranked.length - 1) - 0.5) * 0.06)),
    (trial.value - low) / span]);
  axes.push({name: page.metric, labels: [0, 0.25, 0.5, 0.75, 1].map(share => [measure(low + share * span), share])});
  const readout = node("p", {class: "readout"}), hint = "Each line is a trial; the bluer the better. Point at one.";
  const wide = 152 + 170 * (axes.length - 1) + 90, box = node("div", {class: "parallel"});
  section("Parallel coordinates", box, readout);
  readout.textContent = hint;

  const draw = () => {
    const room = box.clientWidth, beside = wide <= room;
    const width = beside ? wide : room, height = beside ? 330 : 60 + 78 * (axes.length - 1);
    const place = (index, share) => beside ? [152 + 170 * index, 312 - share * 272] : [16 + share * (room - 32), 30 + 78 * index];
    const svg = shape("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Parallel coordinates"});
    ranked.forEach((trial, rank) => {
      const share = good(trial.value);
      const line = shape("polyline", {points: rows[rank].map((value, index) => place(index, value).join(",")).join(" "), fill: "none",
        class: "trial", "stroke-width": 2.2, tabindex: 0,
        style: `stroke: color-mix(in oklab, var(--correct) ${Math.round(100 * share)}%, var(--wrong)); opacity: ${0.4 + 0.6 * share}`});
      for (const event of ["pointerenter", "focus"]) line.addEventListener(event, () => {
        line.setAttribute("stroke-width", 5);
        readout.textContent = `${measure(trial.value)}: ${trial.name}`;
      });
      for (const event of ["pointerleave", "blur"]) line.addEventListener(event, () => {
        line.setAttribute("stroke-width", 2.2);
        readout.textContent = hint;
      });
      svg.append(line);
    });
    axes.forEach((axis, index) => {
      const [x1, y1] = place(index, 0), [x2, y2] = place(index, 1), last = index === axes.length - 1;
      svg.append(shape("line", {x1, y1, x2, y2, style: "stroke: var(--ink)"}), beside
        ? shape("text", {x: x1, y: 16, "text-anchor": "middle", "font-size": 13, "font-weight": 650}, axis.name)
        : shape("text", {x: x1, y: y1 - 9, "font-size": 13, "font-weight": 650, class: "halo"}, axis.name));
      let free = -Infinity;  // on a horizontal axis, labels that would overlap the one before are left out
      for (const [text, share] of [...axis.labels].sort((a, b) => a[1] - b[1])) {
        const [x, y] = place(index, share), shown = short(String(text)), length = 7.6 * shown.length;
        const start = Math.min(Math.max(0, x - length / 2), width - length);
        if (beside) svg.append(shape("text", {x: x + (last ? 8 : -8), y: y + 4, "text-anchor": last ? "start" : "end", "font-size": 12,
                                              class: "halo"}, shown));
        else if (start > free) {
          svg.append(shape("text", {x: start + length / 2, y: y + 18, "text-anchor": "middle", "font-size": 12, class: "halo"}, shown));
          free = start + length + 4;
        }
      }
    });
    box.replaceChildren(svg);
  };
  draw();
  let known = box.clientWidth;
  window.addEventListener("resize", () => {
    if (box.clientWidth !== known) known = box.clientWidth, draw();
  });
}

function importance() {
  if (!page.importance.length) return;
  const names = Object.fromEntries(page.keys);
  section("Importance of settings", node("p", {class: "quiet"}, `Share of the variance of ${page.metric} that each setting `
    + "alone explains beyond chance (epsilon squared). Settings that matter only in combination score low."),
    node("div", {class: "bars"}, ...page.importance.flatMap(([key, share]) => [node("span", {title: key}, names[key]),
      node("span", {class: "n"}, percent(share, 0)), node("span", {class: "track"}, node("span", {style: `width: ${100 * share}%`}))])));
}

function sizes() {
  if (!page.sizes.length) return;
  const colours = ["--correct", "--wrong", "--focus", "--ink"];
  const lines = page.sizes.slice(0, 8).map((series, index) => ({name: series.name || "validation", colour: colours[index % 4],
    dash: index < 4 ? null : "6 3", values: series.points.map(([count, value]) => [count, value])}));
  section("Accuracy by number of training images", node("p", {class: "quiet"}, "More data would help where a curve still "
    + "rises."), node("div", {class: "charts"}, chart("Validation accuracy", lines, {percent: true, x: "training images"})));
}

summary(); leaderboard(); trials(); parallel(); importance(); sizes();
