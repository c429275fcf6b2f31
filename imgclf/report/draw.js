"use strict";
// Shared by both pages. Text gets into the page by textContent alone: a class may be called "<img onerror=...>".
const page = JSON.parse(document.getElementById("page-data").textContent);
const main = document.querySelector("main");
const SVG = "http://www.w3.org/2000/svg";
const percent = (share, digits = 1) => (100 * share).toFixed(digits) + " %";
const interval = ([low, high]) => `${(100 * low).toFixed(1)}–${percent(high)}`;
const number = (value, digits = 4) => value === null || value === undefined ? "" : String(+(+value).toPrecision(digits));

function node(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

function section(title, ...children) {
  const element = node("section", {}, node("h2", {}, title), ...children);
  main.append(element);
  return element;
}

// Two columns of sections where the window has room; one where one of them is empty.
function columns(left, right) {
  const sides = [left, right].map(sections => sections.filter(Boolean)).filter(sections => sections.length);
  main.append(node("div", {class: sides.length > 1 ? "columns" : null}, ...sides.map(sections => node("div", {}, ...sections))));
}

// Text in one line, with an ellipsis where it is too long, and the whole of it at the pointer.
function cut(text, kind = "", whole = text) {
  return node("span", {class: `cut ${kind}`.trim(), title: whole}, text);
}

function list(pairs) {
  return node("dl", {}, ...pairs.flatMap(([key, value]) => [node("dt", {}, key), node("dd", {}, String(value))]));
}

// Charts

function chart(title, lines, options) {
  const {width = 460, height = 250} = options, left = 48, right = 22, top = 12, bottom = 34;
  lines = lines.filter(line => line.values.some(([, y]) => y !== null));
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
  for (const tick of ticks(lowX, highX, width / 60).filter(Number.isInteger))
    svg.append(shape("text", {x: x(tick), y: height - bottom + 17, "text-anchor": "middle", "font-size": 12, class: "soft"},
                     tick.toLocaleString("en")));
  svg.append(shape("text", {x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle", "font-size": 12}, options.x || "epoch"));
  for (const line of lines) {
    const known = line.values.filter(([, value]) => value !== null);
    svg.append(shape("polyline", {points: known.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), fill: "none",
                                  style: `stroke: var(${line.colour})`, "stroke-width": 2, "stroke-dasharray": line.dash}));
    if (known.length <= 40) for (const [a, b] of known)
      svg.append(shape("circle", {cx: x(a), cy: y(b), r: 3, style: `fill: var(${line.colour})`}));
  }
  const mark = shape("line", {y1: top, y2: height - bottom, class: "axis", visibility: "hidden"});
  const readout = node("div", {class: "quiet readout"});
  const rest = () => {
    mark.setAttribute("visibility", "hidden");
    readout.replaceChildren(...lines.flatMap(line => [
      node("span", {style: `color: var(${line.colour})`}, `${line.dash ? "╌╌" : "──"} ${line.name}  `)]));
  };
  if (options.mark) svg.append(
    shape("line", {x1: x(options.mark), x2: x(options.mark), y1: top, y2: height - bottom, class: "mark", "stroke-dasharray": "2 3"}),
    shape("title", {}, `dotted line: best epoch, ${options.mark}`));
  svg.append(mark);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const pointed = lowX + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (highX - lowX);
    const at = xs.reduce((best, value) => Math.abs(value - pointed) < Math.abs(best - pointed) ? value : best);
    mark.setAttribute("x1", x(at)), mark.setAttribute("x2", x(at)), mark.setAttribute("visibility", "visible");
    readout.textContent = `${options.x || "epoch"} ${at.toLocaleString("en")}: ` + lines.map(line => {
      const [, value] = line.values.find(([a]) => a === at) || [at, null];
      return value === null ? null : `${line.name} ${options.percent ? percent(value) : number(value)}`;
    }).filter(Boolean).join(", ");
  });
  svg.addEventListener("pointerleave", rest);
  rest();
  return node("div", {class: "panel"}, node("h3", {}, title), svg, readout);
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(value => value >= raw);
  const values = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step)
    values.push(+tick.toPrecision(10));
  return values;
}

// Tables

// `foot`: rows of texts below the sorted ones. A column is {name, n: number, format, cut: with an ellipsis where it is too long}.
function sortable(columns, rows, attributes = {}, foot = []) {
  const body = node("tbody"), heads = [];
  const sort = (column, down) => {
    const sorted = [...rows].sort((a, b) => (typeof a[column] === "number" ? a[column] - b[column]
      : String(a[column]).localeCompare(String(b[column]), undefined, {numeric: true})) * (down ? -1 : 1));
    body.replaceChildren(...sorted.map(row => node("tr", {}, ...row.map((value, index) => columns[index].n
      ? node("td", {class: "n"}, columns[index].format ? columns[index].format(value) : String(value))
      : node("td", columns[index].cut ? {class: "cut", title: value} : {}, String(value))))));
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== column ? "none" : down ? "descending" : "ascending"));
  };
  columns.forEach((column, index) => {
    const choose = () => {  // a first click puts the lowest value on top, a second the highest
      sort(index, head.getAttribute("aria-sort") === "ascending");
    };
    const head = node("th", {class: column.n ? "n" : null, "aria-sort": "none"}, node("button", {onclick: choose}, column.name));
    heads.push(head);
  });
  sort(0, false);
  return node("div", {class: "scroll"}, node("table", attributes, node("thead", {}, node("tr", {}, ...heads)), body,
    foot.length ? node("tfoot", {}, ...foot.map(row => node("tr", {}, ...row.map((value, index) =>
      node("td", {class: columns[index].n ? "n" : null}, value))))) : null));
}
