// Elements, and how values look. Texts of runs become text nodes and attributes of the page, never
// markup.

const byId = (id) => document.getElementById(id);
const SVG = new Set(["svg", "path", "line", "circle", "text", "g", "rect", "polygon", "clipPath", "title"]);

function make(tag, attributes, ...children) {
  const found = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) found.setAttribute(name, value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

const on = (node, event, act) => (node.addEventListener(event, act), node);
const button = (text, act, attributes) => on(make("button", { type: "button", ...attributes }, text), "click", act);
const note = (text) => make("p", { class: "note" }, text);
const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

function number(value, digits = 5) {
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return String(value);
  return size && (size < 1e-3 || size >= 1e7)
    ? value.toExponential(Math.max(2, digits - 3)).replace(/\.?0+e/, "e")
    : String(Number(value.toPrecision(digits)));
}

// The fewest digits with which different values of a column look different.
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

function size(bytes) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 1000) return `${unit === "B" ? bytes : Number(bytes.toPrecision(3))} ${unit}`;
    bytes /= 1000;
  }
  return `${Number(bytes.toPrecision(3))} TB`;
}

const moment = (text) => String(text).replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*$/, "$1 $2");
const heading = (name) => ({ seconds: "duration", bytes: "size" })[name] || name;

function cell(column, value, digits = 5) {
  if (value === null || value === undefined) return "";
  if (column === "started" || column === "stopped") return moment(value);
  if (typeof value !== "number") return String(value);
  if (column === "seconds") return duration(value);
  if (column === "bytes") return size(value);
  if (column.endsWith("- validation")) return (value >= 0 ? "+" : "") + number(value, digits);
  return number(value, digits);
}

const natural = new Intl.Collator("en", { numeric: true });
const isMissing = (value) => value === null || value === undefined || value === "";

// Numbers before texts. Items without a value come last in both directions.
function inOrder(items, valueOf, down) {
  const keyed = items.map((item, place) => [valueOf(item), place, item]);
  keyed.sort(([a, i], [b, j]) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b) || i - j;
    const both = typeof a === "number" && typeof b === "number";
    const ordered = both ? a - b : natural.compare(String(a), String(b));
    return (down ? -ordered : ordered) || i - j;
  });
  return keyed.map(([, , item]) => item);
}

// A table of rows that are objects; a value may be a node.
function table(columns, rows, attributes) {
  const numeric = new Set(columns.filter((name) => rows.some((row) => typeof row[name] === "number")));
  const digits = Object.fromEntries(columns.map((name) => [name, digitsOf(rows.map((row) => row[name]))]));
  const side = (name) => (numeric.has(name) ? "number" : null);
  const heads = columns.map((name) => make("th", { scope: "col", class: side(name) }, heading(name)));
  const body = rows.map((row) => make("tr", null, ...columns.map((name) => {
    const value = row[name];
    return make("td", { class: side(name) }, value instanceof Node ? value : cell(name, value, digits[name]));
  })));
  return make("table", attributes,
    make("thead", null, make("tr", null, ...heads)), make("tbody", null, ...body));
}

const pairsTable = (pairs) => make("table", { class: "facts" }, make("tbody", null,
  ...pairs.map(([name, value]) => make("tr", null, make("th", { scope: "row" }, name), make("td", null, value)))));

const box = (title, ...children) =>
  make("div", { class: "box short", tabindex: 0, role: "region", "aria-label": title }, ...children);

const folded = (title, open, ...children) =>
  make("details", open ? { open: "" } : null, make("summary", null, title), ...children);

function selectOf(label, names, chosen, act) {
  const select = make("select", { "aria-label": label },
    ...names.map((name) => make("option", { value: name }, heading(name))));
  select.value = chosen;
  return on(select, "change", () => act(select.value));
}

function tickOf(text, checked, act) {
  const tick = make("input", { type: "checkbox" });
  tick.checked = checked;
  on(tick, "change", () => act(tick.checked));
  return make("label", { class: "tick" }, tick, text);
}

// Ticks for names. They are made when they are first opened.
function ticksOf(title, names, isChosen, act) {
  const node = folded(title, false);
  node.className = "ticks";
  on(node, "toggle", () => {
    if (!node.open || node.children.length > 1) return;
    node.append(make("div", { class: "many", role: "group", "aria-label": title },
      ...names.map((name) => tickOf(heading(name), isChosen(name), (wanted) => act(name, wanted)))));
  });
  return node;
}
