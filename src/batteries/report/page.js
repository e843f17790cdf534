
"use strict";
// Names and values of runs reach the page as text nodes and attributes only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "14 4"];  // with six colours, thirty lines that differ
const COLOURS = 6;
const START = 6;  // runs that are drawn at first: the newest

const byId = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g"].includes(tag);
  const found = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) found.setAttribute(name, value);
  }
  found.append(...children.filter((child) => child !== null));
  return found;
}

const on = (node, event, act) => (node.addEventListener(event, act), node);

// ---------------------------------------------------------------- how values look

function number(value, digits = 5) {
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return String(value);
  return size && (size < 1e-3 || size >= 1e7)
    ? value.toExponential(Math.max(2, digits - 3))
    : String(Number(value.toPrecision(digits)));
}

// As few digits as tell apart what differs in a column.
function digitsOf(values) {
  const exact = new Set(values.filter(Number.isFinite).map((value) => Number(value.toPrecision(12))));
  for (let digits = 5; digits < 12; digits += 1) {
    if (new Set([...exact].map((value) => number(value, digits))).size === exact.size) return digits;
  }
  return 12;
}

function duration(seconds) {
  const all = Math.round(seconds);
  const two = (part) => String(part).padStart(2, "0");
  return `${Math.floor(all / 3600)}:${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
}

const moment = (text) => String(text).replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*$/, "$1 $2");

function cell(column, value, digits = 5) {
  if (value === null || value === undefined) return "";
  if (column === "started" || column === "stopped") return moment(value);
  if (typeof value !== "number") return String(value);
  if (column === "seconds") return duration(value);
  if (column === "bytes") return size(value);
  if (column.endsWith("- validation")) return (value >= 0 ? "+" : "") + number(value, digits);
  return number(value, digits);
}

function size(bytes) {
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (bytes < 1000) return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(1)} TB`;
}

const order = new Intl.Collator("en", { numeric: true });

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return order.compare(String(a), String(b));
}

// ---------------------------------------------------------------- which runs are drawn

const drawn = new Map();  // from the run's number to that of its colour and dashes
const watchers = [];  // what is drawn again when the choice changes

function draw(run, wanted) {
  if (!wanted) drawn.delete(run);
  else if (!drawn.has(run)) {
    const used = new Set(drawn.values());
    let free = 0;
    while (used.has(free)) free += 1;
    drawn.set(run, free);
  }
}

const changed = () => watchers.forEach((watch) => watch());
const chosen = () => [...drawn.keys()].sort((a, b) => a - b);
const stroke = (slot) => ({
  stroke: `var(--c${slot % COLOURS})`,
  "stroke-dasharray": DASHES[slot % DASHES.length],
});

function swatch(attributes, width = 2.2) {
  return make("svg", { class: "swatch", "aria-hidden": "true", viewBox: "0 0 34 12" },
    make("line", { x1: 0, x2: 34, y1: 6, y2: 6, "stroke-width": width, ...attributes }));
}

// ---------------------------------------------------------------- tables

function table(columns, rows, attributes) {
  const numeric = new Set(columns.filter((name) => rows.some((row) => typeof row[name] === "number")));
  const heads = columns.map((name) =>
    make("th", { scope: "col", class: numeric.has(name) ? "number" : null }, heading(name)));
  const digits = Object.fromEntries(columns.map((name) => [name, digitsOf(rows.map((row) => row[name]))]));
  const body = rows.map((row) => make("tr", null, ...columns.map((name) => {
    const value = row[name];
    const kind = numeric.has(name) ? "number" : null;
    return make("td", { class: kind }, value instanceof Node ? value : cell(name, value, digits[name]));
  })));
  return make("table", attributes,
    make("thead", null, make("tr", null, ...heads)), make("tbody", null, ...body));
}

const heading = (name) => ({ seconds: "duration", bytes: "size" })[name] || name;

function box(title, ...children) {
  return make("div", { class: "box short", tabindex: 0, role: "region", "aria-label": title }, ...children);
}

function runName(run) {
  const button = make("button", { type: "button", class: "name" }, runs[run].name);
  return on(button, "click", () => {
    show(run);
    byId("run-title").focus();
    byId("run").scrollIntoView();
  });
}

function runsTable() {
  const columns = data.columns;
  const sorting = { column: null, down: false };
  const numeric = (name) => runs.some((run) => typeof run.row[name] === "number");
  const heads = columns.map((name) => make("th",
    { scope: "col", "aria-sort": "none", class: numeric(name) ? "number" : null },
    on(make("button", { type: "button" }, heading(name)), "click", () => sort(name))));
  // The mark of what is drawn stands after the name, which stays in sight when the table moves.
  heads.splice(1, 0, make("th", { scope: "col" }, "draw"));
  const digits = Object.fromEntries(
    columns.map((name) => [name, digitsOf(runs.map((run) => run.row[name]))]));
  const lines = runs.map((run, index) => {
    const tick = make("input", { type: "checkbox", "aria-label": `draw ${run.name}` });
    const mark = make("span", { class: "draw" }, tick);
    on(tick, "change", () => { draw(index, tick.checked); changed(); });
    watchers.push(() => {
      tick.checked = drawn.has(index);
      mark.replaceChildren(...(tick.checked ? [tick, swatch(stroke(drawn.get(index)))] : [tick]));
    });
    const cells = columns.map((name) => {
      if (name === "run") return make("th", { scope: "row" }, runName(index));
      const state = name === "state" ? `state-${run.row[name]}` : null;
      return make("td", { class: numeric(name) ? "number" : state }, cell(name, run.row[name], digits[name]));
    });
    cells.splice(1, 0, make("td", null, mark));
    const line = make("tr", null, ...cells);
    return { index, line, words: line.textContent.toLowerCase() };
  });
  const body = make("tbody");

  function sort(name) {
    sorting.down = sorting.column === name && !sorting.down;
    sorting.column = name;
    arrange();
  }

  function arrange() {
    const { column, down } = sorting;
    if (column !== null) {
      const missing = (line) => [null, undefined, ""].includes(runs[line.index].row[column]);
      lines.sort((a, b) => {
        if (missing(a) !== missing(b)) return missing(a) ? 1 : -1;  // at the end, either way
        const ordered = missing(a) ? 0 : compare(runs[a.index].row[column], runs[b.index].row[column]);
        return (down ? -ordered : ordered) || a.index - b.index;
      });
    }
    heads.filter((head) => head.hasAttribute("aria-sort")).forEach((head, place) => {
      const own = columns[place] === column;
      head.setAttribute("aria-sort", own ? (down ? "descending" : "ascending") : "none");
    });
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = lines.filter((line) => words.every((word) => line.words.includes(word)));
    body.replaceChildren(...shown.map((line) => line.line));
    byId("count").textContent = `${shown.length} of ${runs.length} runs`;
    return shown;
  }

  on(byId("filter"), "input", arrange);
  on(byId("all"), "click", () => { arrange().forEach((line) => draw(line.index, true)); changed(); });
  on(byId("none"), "click", () => { drawn.clear(); changed(); });
  byId("table").querySelector(".box").append(
    make("table", null, make("thead", null, make("tr", null, ...heads)), body));
  arrange();
}

// ---------------------------------------------------------------- axes

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

function range(values, room) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  if (low === high) return [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  return [low - (high - low) * room, high + (high - low) * room];
}

// Axes with their ticks: an empty plot, and where values lie on it.
function axes(width, height, [xLow, xHigh], [yLow, yHigh], xName, whole) {
  const yTicks = ticks(yLow, yHigh, 5);
  const left = 14 + 7 * Math.max(...yTicks.map((value) => number(value).length), 2);
  const right = 14;
  const top = 10;
  const bottom = height - 38;
  const x = (value) => left + (value - xLow) / (xHigh - xLow) * (width - left - right);
  const y = (value) => bottom - (value - yLow) / (yHigh - yLow) * (bottom - top);
  const parts = [];
  for (const value of yTicks) {
    parts.push(make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    parts.push(make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const value of ticks(xLow, xHigh, Math.max(2, Math.floor(width / 90)))) {
    if (whole && !Number.isInteger(value)) continue;
    parts.push(make("line", { class: "grid", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }));
    parts.push(make("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, number(value)));
  }
  parts.push(make("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, xName));
  return { x, y, top, bottom, parts };
}

// A plot that is read with the pointer or with the arrow keys: a slider over its places.
function plot(label, height) {
  const svg = make("svg", { class: "plot", tabindex: 0, role: "slider", "aria-label": label, height });
  const readout = make("div", { class: "readout" });
  const found = { svg, readout, height, places: [], at: 0, pixel: null, tell: null };
  found.move = (to) => {
    if (!found.places.length) return;
    found.at = Math.min(Math.max(to, 0), found.places.length - 1);
    svg.setAttribute("aria-valuemin", 0);
    svg.setAttribute("aria-valuemax", found.places.length - 1);
    svg.setAttribute("aria-valuenow", found.at);
    svg.setAttribute("aria-valuetext", found.tell(found.at));
  };
  on(svg, "keydown", (event) => {
    const far = Math.max(1, Math.round(found.places.length / 10));
    const to = {
      ArrowLeft: found.at - 1, ArrowDown: found.at - 1, ArrowRight: found.at + 1,
      ArrowUp: found.at + 1, PageDown: found.at - far, PageUp: found.at + far,
      Home: 0, End: found.places.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    found.move(to);
  });
  const follow = (event) => {
    if (!found.places.length) return;
    const frame = svg.getBoundingClientRect();
    const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
    let best = 0;
    let least = Infinity;
    found.places.forEach((place, index) => {
      const [x, y] = found.pixel(place);
      const distance = Math.hypot(x - px, y === null ? 0 : y - py);
      if (distance < least) [best, least] = [index, distance];
    });
    found.move(best);
  };
  on(svg, "pointermove", follow);
  on(svg, "pointerdown", follow);
  return found;
}

function redrawOnResize(node, redraw) {
  let width = 0;
  new ResizeObserver(() => {
    if (node.clientWidth === width) return;
    width = node.clientWidth;
    redraw();
  }).observe(node);
}

// ---------------------------------------------------------------- curves

for (const run of runs) {
  run.curves = run.curves.map(([group, part, unit, distances, values, lost]) => {
    let at = 0;
    return { group, part, unit, lost, values, steps: distances.map((distance) => (at += distance)) };
  });
}
const groups = [...new Set(runs.flatMap((run) => run.curves.map((curve) => curve.group)))];

function firstGroups() {
  const metrics = new Set(runs.map((run) => run.row.metric));
  const find = (...tests) => tests.map((test) => groups.find(test)).find(Boolean);
  const wanted = [
    find((name) => name === "loss", (name) => /loss/i.test(name)),
    find((name) => metrics.has(name) && !/loss/i.test(name), (name) => /acc|auc|f1|score|metric/i.test(name)),
    find((name) => /^lr$|learning.?rate/i.test(name), (name) => /lr/i.test(name)),
  ];
  return [...new Set([...wanted.filter(Boolean), ...groups])].slice(0, 3);
}

function nearest(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
}

// Breaks where a value is not finite; a point that stands alone becomes a dot.
function linePath(curve, x, y) {
  let path = "";
  let open = false;
  curve.values.forEach((value, index) => {
    if (value === null) { open = false; return; }
    path += `${open ? "L" : "M"}${x(curve.steps[index]).toFixed(1)} ${y(value).toFixed(1)}`;
    open = true;
  });
  return path;
}

function lonely(curve) {
  const { values, steps } = curve;
  const empty = (index) => values[index] === null || values[index] === undefined;
  return steps.map((step, index) => [step, values[index], index])
    .filter(([, value, index]) => value !== null && empty(index - 1) && empty(index + 1));
}

function panel(group) {
  const select = make("select", { "aria-label": "What is drawn" },
    ...groups.map((name) => make("option", { value: name }, name)));
  select.value = group;
  const found = plot(`${group}: arrow keys read the values`, 260);
  const key = make("p", { class: "key" });
  const node = make("div", { class: "panel" },
    make("p", { class: "tools" }, select), found.svg, key, found.readout);

  function redraw() {
    const width = node.clientWidth - 24;
    if (width < 80) return;
    const name = select.value;
    const series = chosen().flatMap((run) => runs[run].curves
      .filter((curve) => curve.group === name)
      .map((curve) => ({ run, curve, slot: drawn.get(run) })));
    const parts = [...new Set(series.map((each) => each.curve.part))].sort(order.compare);
    const thick = (part) => 1.3 + 1.3 * Math.min(parts.indexOf(part), 3);
    const title = (part) => (part ? `${part}/${name}` : name);
    found.svg.setAttribute("aria-label", `${name}: arrow keys read the values`);
    found.svg.setAttribute("viewBox", `0 0 ${width} ${found.height}`);
    key.replaceChildren(...parts.map((part) => make("span", null,
      swatch({ stroke: "var(--muted)" }, thick(part)), title(part))));
    if (!series.length) {
      found.places = [];
      found.svg.replaceChildren(make("text", { x: width / 2, y: found.height / 2, "text-anchor": "middle" },
        drawn.size ? "no run that is drawn has it" : "no run is drawn: tick one in the table"));
      found.readout.replaceChildren();
      return;
    }
    const unit = series[0].curve.unit;
    const steps = [...new Set(series.flatMap((each) => each.curve.steps))].sort((a, b) => a - b);
    const values = series.flatMap((each) => each.curve.values.filter((value) => value !== null));
    const frame = axes(width, found.height, range(steps, 0), range(values, 0.05), unit, true);
    const lines = series.map((each) => make("g", { "data-run": runs[each.run].name },
      make("path", {
        class: "curve", d: linePath(each.curve, frame.x, frame.y),
        "stroke-width": thick(each.curve.part), ...stroke(each.slot),
      }),
      ...lonely(each.curve).map(([step, value]) => make("circle", {
        cx: frame.x(step), cy: frame.y(value), r: 3, fill: stroke(each.slot).stroke,
      }))));
    const cursor = make("line", { class: "cursor", y1: frame.top, y2: frame.bottom });
    const marks = make("g");
    found.svg.replaceChildren(...frame.parts, ...lines, cursor, marks);
    const last = found.at === found.places.length - 1 || !found.places.length;
    found.places = steps;
    found.pixel = (step) => [frame.x(step), null];
    found.tell = (at) => {
      const step = steps[at];
      cursor.setAttribute("x1", frame.x(step));
      cursor.setAttribute("x2", frame.x(step));
      marks.replaceChildren();
      const told = [];
      const items = series.map(({ run, curve, slot }) => {
        const index = nearest(curve.steps, step);
        const value = curve.values[index];
        if (value !== null) {
          marks.append(make("circle", {
            cx: frame.x(curve.steps[index]), cy: frame.y(value), r: 3.5, fill: stroke(slot).stroke,
          }));
        }
        const other = curve.steps[index] === step ? "" : ` (${unit} ${number(curve.steps[index])})`;
        const lost = curve.lost ? ` (${curve.lost} not finite)` : "";
        const label = `${runs[run].name} ${parts.length > 1 ? curve.part : ""}`.trim();
        const shown = value === null ? "not finite" : number(value);
        told.push(`${label}${other} ${shown}`);
        return make("li", null, swatch(stroke(slot), thick(curve.part)),
          make("span", null, label + other + lost), make("b", null, shown));
      });
      found.readout.replaceChildren(make("div", null, `${unit} ${number(step)}`), make("ul", null, ...items));
      return `${unit} ${number(step)}: ${told.join("; ")}`;
    };
    found.move(last ? steps.length - 1 : found.at);
  }

  on(select, "change", () => { found.places = []; redraw(); });
  watchers.push(redraw);
  redrawOnResize(node, redraw);
  return node;
}

function legend() {
  byId("legend").replaceChildren(...chosen().map((run) =>
    make("li", null, swatch(stroke(drawn.get(run))), runName(run))));
}

// ---------------------------------------------------------------- validation against leaderboard

function leaderboard() {
  const section = byId("leaderboard");
  const columns = data.columns.filter((name) => name.startsWith("leaderboard.") || name === "test");
  const pairs = (column) => runs
    .map((run, index) => ({ run: index, x: run.row.validation, y: run.row[column] }))
    .filter(({ x, y }) => typeof x === "number" && typeof y === "number");
  const known = columns.filter((column) => pairs(column).length);
  if (!known.length) {
    section.append(make("p", { class: "note" },
      "No run has both scores: batteries score RUN --leaderboard SCORE writes one."));
    return;
  }
  const select = make("select", { "aria-label": "What validation is held against" },
    ...known.map((name) => make("option", { value: name }, name)));
  select.value = known.find((name) => name !== "test") || known[0];
  const found = plot("", 320);
  const node = make("div", { class: "panel narrow" },
    make("p", { class: "tools" }, select), found.svg, found.readout,
    make("p", { class: "note" }, "On the dashed line both are equal."),
    ...data.gaps.map((text) => make("p", { class: "note" }, text)));
  section.append(node);

  function redraw() {
    const width = node.clientWidth - 24;
    if (width < 80) return;
    const points = pairs(select.value).sort((a, b) => a.x - b.x);
    found.svg.setAttribute("aria-label", `validation against ${select.value}: arrow keys read the runs`);
    found.svg.setAttribute("viewBox", `0 0 ${width} ${found.height}`);
    const across = range(points.map((point) => point.x), 0.06);
    const up = range(points.map((point) => point.y), 0.08);
    const frame = axes(width, found.height, across, up, "validation", false);
    const [low, high] = [Math.max(across[0], up[0]), Math.min(across[1], up[1])];
    const equal = low < high
      ? [make("line", { class: "cursor", x1: frame.x(low), y1: frame.y(low), x2: frame.x(high), y2: frame.y(high) })]
      : [];
    const dots = points.map((point) => {
      const slot = drawn.get(point.run);
      const look = slot === undefined
        ? { fill: "none", stroke: "var(--muted)", r: 4 }
        : { fill: `var(--c${slot % COLOURS})`, stroke: "var(--raised)", r: 5.5 };
      return make("circle", { cx: frame.x(point.x), cy: frame.y(point.y), "data-run": runs[point.run].name, ...look });
    });
    const ring = make("circle", { r: 9, fill: "none", stroke: "var(--text)", "stroke-width": 1.5 });
    found.svg.replaceChildren(...frame.parts, ...equal, ...dots, ring);
    found.places = points;
    found.pixel = (point) => [frame.x(point.x), frame.y(point.y)];
    found.tell = (at) => {
      const point = points[at];
      ring.setAttribute("cx", frame.x(point.x));
      ring.setAttribute("cy", frame.y(point.y));
      const told = `validation ${number(point.x)}, ${select.value} ${number(point.y)}`;
      found.readout.replaceChildren(make("div", null, runName(point.run), ` ${told}`));
      return `${runs[point.run].name}: ${told}`;
    };
    found.move(found.at);
  }

  on(select, "change", redraw);
  watchers.push(redraw);
  redrawOnResize(node, redraw);
}

// ---------------------------------------------------------------- checkpoints

function topCheckpoints() {
  const all = runs.flatMap((run, index) => run.checkpoints.map((each) => ({ ...each, index })))
    .filter((each) => typeof each.score === "number");
  const section = byId("checkpoints");
  if (!all.length) {
    section.append(make("p", { class: "note" }, "No run has checkpoint files with a score."));
    return;
  }
  const kind = (each) => `${each.metric} (${each.minimization ? "lowest" : "highest"} first)`;
  const kinds = [...new Set(all.map(kind))];
  const select = make("select", null, ...kinds.map((name) => make("option", { value: name }, name)));
  const place = box("Top checkpoints");
  const redraw = () => {
    const alike = all.filter((each) => kind(each) === select.value);
    alike.sort((a, b) => (a.minimization ? a.score - b.score : b.score - a.score));
    place.replaceChildren(table(["rank", "run", "stage", "epoch", "score", "bytes", "file"]
      .filter((name) => name !== "stage" || alike.some((each) => each.stage)),
    alike.slice(0, 20).map((each, rank) => ({
      ...each, rank: rank + 1, run: runName(each.index), file: `${runs[each.index].path}/${each.file}`,
    }))));
  };
  on(select, "change", redraw);
  section.append(make("p", { class: "tools" }, make("label", null, "Metric ", select)), place);
  redraw();
}

// ---------------------------------------------------------------- one run

function pairsTable(pairs) {
  return make("table", { class: "facts" }, make("tbody", null, ...pairs.map(([name, value]) =>
    make("tr", null, make("th", { scope: "row" }, name), make("td", null, value)))));
}

function folded(title, open, child) {
  const node = make("details", open ? { open: "" } : null, make("summary", null, title));
  node.append(child);
  return node;
}

function diffText(text) {
  const kinds = { "+": "added", "-": "removed", "@": "hunk" };
  return make("pre", null, ...text.split("\n").map((line) =>
    make("span", { class: kinds[line[0]] }, `${line}\n`)));
}

function show(index) {
  const run = runs[index];
  byId("which").value = String(index);
  byId("run-title").textContent = `Run ${run.name}`;
  const parts = [make("p", { class: "note" }, `${run.path} · ${run.row.state || "unknown"}`)];
  if (run.problems.length) {
    parts.push(make("h3", null, "Problems"),
      make("ul", { class: "state-failed" }, ...run.problems.map((text) => make("li", null, text))));
  }
  for (const [title, places] of Object.entries(run.facts)) {
    const pairs = places.map((place) => data.shared[place]);
    if (pairs.length) parts.push(folded(title, true, box(title, pairsTable(pairs))));
  }
  if (run.sessions.length) {
    const columns = ["started", "stopped", "state", "host", "error"];
    const used = columns.filter((name) => run.sessions.some((session) => session[name] !== null));
    parts.push(folded("starts", true, box("starts", table(used, run.sessions))));
  }
  if (run.checkpoints.length) {
    parts.push(folded("checkpoints", true,
      box("checkpoints", table(["epoch", "metric", "score", "bytes", "file"], run.checkpoints))));
  }
  const diff = data.shared[run.diff];
  if (diff) parts.push(folded("diff", false, box("diff", diffText(diff))));
  if (run.log) parts.push(folded("end of the log", true, box("end of the log", make("pre", null, run.log))));
  const packages = data.shared[run.packages].map((place) => data.shared[place]);
  if (packages.length) parts.push(folded("packages", false, box("packages", pairsTable(packages))));
  if (parts.length === 1) parts.push(make("p", null, "Nothing else is recorded of it."));
  byId("detail").replaceChildren(...parts);
  const log = byId("detail").querySelector("[aria-label='end of the log']");
  if (log) log.scrollTop = log.scrollHeight;
}

// ---------------------------------------------------------------- the page

document.title = `Runs in ${data.logdir}`;
document.querySelector("h1").textContent = `Runs in ${data.logdir}`;
byId("about").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"}, written `
  + `${moment(data.written)} UTC by batteries ${data.version}`;
const problems = runs.flatMap((run) => run.problems.map((text) => `${run.name}: ${text}`));
if (problems.length) {
  byId("problems").hidden = false;
  byId("problems").querySelector("summary").textContent =
    `${problems.length} ${problems.length === 1 ? "problem" : "problems"} with files`;
  byId("problems").querySelector("ul").append(...problems.map((text) => make("li", null, text)));
}
runsTable();
watchers.push(legend);
if (groups.length) byId("panels").append(...firstGroups().map(panel));
else byId("panels").append(make("p", { class: "note" },
  "No run has curves: JsonLinesLogger(run.path) writes those of metrics, CheckpointManager those of scores."));
leaderboard();
topCheckpoints();
byId("which").append(...runs.map((run, index) => make("option", { value: index }, run.name)));
on(byId("which"), "change", (event) => show(Number(event.target.value)));
show(0);
runs.map((run, index) => index).filter((index) => runs[index].curves.length).slice(-START)
  .forEach((index) => draw(index, true));
changed();
