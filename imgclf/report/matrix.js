// The confusion matrix of report.html: it shrinks to its window with all names, and where names would be unreadable scrolls in
// a box of its own, with the names staying in sight.

const SMALLEST = 10;  // pixels of a cell whose name can still be read
const pen = document.createElement("canvas").getContext("2d");

function widthOf(text, font) {
  pen.font = `${font}px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

// The name, or its beginning and end around an ellipsis: both tell names apart.
function fitted(name, room, font) {
  if (widthOf(name, font) <= room) return name;
  let kept = name.length - 1;
  while (kept > 2 && widthOf(name.slice(0, Math.ceil(kept / 2)) + "…" + name.slice(-Math.floor(kept / 2)), font) > room) kept--;
  return name.slice(0, Math.ceil(kept / 2)) + "…" + name.slice(-Math.floor(kept / 2));
}

// Sizes in pixels for a window of `width`: of a cell, its font, and the room for names and the title of the axis.
function measures(width) {
  const count = page.classes.length, title = 20, fontOf = cell => Math.max(8.5, Math.min(13, 0.82 * cell));
  const longest = font => Math.ceil(Math.max(...page.classes.map(name => widthOf(name, font)))) + 7;
  let cell = 46, font = 13, names = 0;
  for (let step = 0; step < 3; step++) {
    font = fontOf(cell), names = Math.min(longest(font), 0.34 * width, count > 40 ? 140 : 190);
    cell = Math.min(46, (width - names - title - 1) / count);
  }
  if (cell >= SMALLEST) return {cell, font: fontOf(cell), room: names + title, title, scrolls: false};
  return {cell: 18, font: 11, room: Math.min(longest(11), 104) + title, title, scrolls: true};
}

function drawMatrix(box, choose, read) {
  const {cell, font, room, title, scrolls} = measures(box.parentElement.clientWidth);
  const count = page.classes.length, side = cell * count, total = page.classes.map(() => 0);
  for (const [row, , many] of page.matrix) total[row] += many;
  const draw = (width, height, kind) => shape("svg", {viewBox: `0 0 ${width} ${height}`, class: kind});
  const heads = draw(side, room, "heads"), rows = draw(room, side, "rows"), cells = draw(side, side, "cells");
  const middle = Math.min(side / 2, scrolls ? 90 : 300), bold = {"text-anchor": "middle", "font-size": 13, "font-weight": 650, class: "title"};
  heads.append(shape("text", {...bold, x: Math.max(middle, 34), y: 13}, "Predicted"));
  rows.append(shape("text", {...bold, transform: `translate(13 ${middle}) rotate(-90)`}, "True"));
  page.classes.forEach((name, index) => {
    const shown = fitted(name, room - title - 6, font), at = cell * (index + 0.5) + font * 0.35;
    const named = attributes => shape("text", {"font-size": font, class: "name", ...attributes}, shown, shape("title", {}, name));
    rows.append(named({x: room - 5, y: at, "text-anchor": "end"}));
    heads.append(named({transform: `translate(${at} ${room - 5}) rotate(-90)`}));
  });
  for (let index = 0; index <= count; index++)
    cells.append(shape("line", {x1: 0, x2: side, y1: cell * index, y2: cell * index, class: "axis"}),
                 shape("line", {y1: 0, y2: side, x1: cell * index, x2: cell * index, class: "axis"}));
  const gap = Math.min(1, cell / 16), fit = text => Math.min(13, 0.62 * cell + 1.5, (cell - 2) / widthOf(text, 1));
  for (const [row, column, many] of page.matrix) {
    const share = many / total[row], hit = row === column, text = cellText(row, column, many, total[row]);
    const square = shape("rect", {x: cell * column + gap, y: cell * row + gap, width: cell - 2 * gap, height: cell - 2 * gap,
      class: "cell", tabindex: 0, role: "button", "data-cell": `${row},${column}`, "aria-label": text,
      style: `fill: rgb(var(--${hit ? "correct" : "wrong"}-soft) / ${(0.2 + 0.8 * share).toFixed(3)})`});
    for (const event of ["pointerenter", "focus"]) square.addEventListener(event, () => read(text));
    square.addEventListener("click", () => choose(row, column));
    square.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(row, column);
    });
    cells.append(square);
    const digits = fit(String(many));
    if (digits >= 7)
      cells.append(shape("text", {x: cell * (column + 0.5), y: cell * (row + 0.5) + digits * 0.35, "text-anchor": "middle",
        "font-size": digits, "pointer-events": "none",
        class: `count ${share > 0.5 ? "middle" : ""} ${hit && share > 0.85 ? "strong" : ""}`}, String(many)));
  }
  box.classList.toggle("scrolls", scrolls);
  box.replaceChildren(node("div", {class: "matrix", role: "group", "aria-label": "Confusion matrix",
    style: `width: ${room + side}px; grid-template-columns: ${room}fr ${side}fr`}, node("div", {class: "corner"}), heads, rows, cells));
}

function confusion() {
  const totals = page.classes.map(() => 0), readout = node("p", {class: "readout"}), below = node("div", {class: "chosen-images"},
    page.classes.length > 24 ? node("p", {class: "quiet hint"}, "The images of the chosen cell are shown here.") : null);
  for (const [row, , many] of page.matrix) totals[row] += many;
  const read = text => { readout.textContent = text; };
  read("Choose a cell to read it and to see its images.");
  let chosen = "", drawn = 0;
  const mark = () => {
    for (const square of box.querySelectorAll(".cell")) square.classList.toggle("chosen", square.dataset.cell === chosen);
  };
  const choose = (row, column) => {
    chosen = `${row},${column}`;
    mark();
    const [, , many] = page.matrix.find(([a, b]) => a === row && b === column);
    const images = page.images.filter(image => image.true === row && image.predicted === column), rest = many - images.length;
    const where = page.listed ? `listed in ${page.listed}` : "not on this page";
    below.replaceChildren(node("h3", {}, cellText(row, column, many, totals[row])), gallery(images),
      rest > 0 ? node("p", {class: "quiet"}, `${rest.toLocaleString("en")} more ${rest > 1 ? "are" : "is"} ${where}.`) : "");
    arrangeGalleries();
    below.scrollIntoView({block: "nearest"});
  };
  const pairs = page.confused.map(([row, column, many]) => node("tr", {}, node("td", {class: "n"}, many.toLocaleString("en")),
    node("td", {class: "cut"}, node("button", {class: "pair", onclick: () => choose(row, column)}, cut(page.classes[row]),
      node("span", {}, "as"), cut(page.classes[column]))), node("td", {class: "quiet n"}, `of ${totals[row].toLocaleString("en")}`)));
  const scale = (name, soft) => node("span", {}, name, node("i", {style: `--soft: var(--${soft}-soft)`}));
  const key = node("div", {class: "key"}, scale("correct", "correct"), scale("wrong", "wrong"),
                   node("span", {class: "quiet"}, "pale to full: 0 to 100 % of the true class"));
  const box = node("div", {class: "box"});
  const matrix = section("Confusion matrix", node("div", {}, box), readout, key);
  const confused = pairs.length ? section("Most confused classes", node("p", {class: "quiet"},
    "True class, as which class it was predicted, and how often."), node("table", {class: "pairs"}, node("tbody", {}, ...pairs))) : null;
  if (page.classes.length <= 24) columns([matrix], [confused, below]);
  else {
    main.append(matrix);
    columns([confused], [below]);
  }
  return () => {
    const width = box.parentElement.clientWidth;
    if (width === drawn) return;
    drawn = width;
    drawMatrix(box, choose, read);
    mark();
    matrix.classList.toggle("tall", box.offsetHeight > 0.8 * innerHeight);  // what a cell says then stays in sight
  };
}

function cellText(row, column, many, total) {
  const what = row === column ? "correctly classified" : `predicted as ${page.classes[column]}`;
  return `${page.classes[row]}: ${many.toLocaleString("en")} of ${total.toLocaleString("en")} ${what}`;
}
