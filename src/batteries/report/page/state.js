// What is shown: one object. The address has it after the #, so a link shows the same view.

const NEW = {
  q: "", sort: "", of: "", cols: [], group: [], draw: null, x: "step", log: false, clip: true,
  smooth: 0, zoom: null, panels: [], sx: "", sy: "", slog: null, par: [], run: "", more: false,
};
const BEST = 5;  // runs that are drawn at first
const state = structuredClone(NEW);
const watchers = [];  // functions that draw again when something changes

// A list has its name once for each value. An empty list has its name once, without a value.
function toHash() {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (JSON.stringify(value) === JSON.stringify(NEW[name])) continue;
    if (Array.isArray(value)) (value.length ? value : [""]).forEach((each) => found.append(name, each ?? ""));
    else if (typeof value === "boolean") found.set(name, value ? "1" : "0");
    else found.set(name, value);
  }
  return String(found);
}

function fromHash(text) {
  const told = new URLSearchParams(text.replace(/^#/, ""));
  Object.assign(state, structuredClone(NEW));
  for (const name of Object.keys(NEW)) {
    if (!told.has(name)) continue;
    const values = told.getAll(name);
    if (["log", "clip", "slog", "more"].includes(name)) state[name] = values[0] === "1";
    else if (name === "smooth") state.smooth = Math.min(Math.max(Number(values[0]) || 0, 0), 30);
    else if (name === "zoom") {
      const ends = values.map(Number);
      state.zoom = ends.length === 2 && ends.every(Number.isFinite) && ends[0] < ends[1] ? ends : null;
    } else if (name === "draw") state.draw = values.map((each) => each || null);
    else if (Array.isArray(NEW[name])) state[name] = values.filter(Boolean);
    else state[name] = values[0];
  }
  if (!["step", "epoch", "time"].includes(state.x)) state.x = "step";
}

function change(values) {
  Object.assign(state, values);
  history.replaceState(null, "", `#${toHash()}`);
  changed();
}

// Everything below the curves is drawn later than the curves, one part at a time.
const waiting = new Set();
const later = (draw) => () => {
  if (!waiting.size) requestAnimationFrame(() => setTimeout(drawNext));
  waiting.add(draw);
};

function drawNext() {
  const [draw] = waiting;
  waiting.delete(draw);
  if (waiting.size) setTimeout(drawNext);
  draw();
}

let nowDrawn = null;  // computed once for each change

function changed() {
  nowDrawn = null;
  watchers.forEach((watch) => watch());
}
const score = () => (Object.hasOwn(data.columns, state.of) ? state.of : defaultScore());

// ---------------------------------------------------------------- what is drawn

// The runs or groups of a table: `{ key, runs }`, in the order of the table.
let units = [];

function unitsOf(some) {
  const by = state.group.filter((name) => Object.hasOwn(data.columns, name));
  if (!by.length) return some.map((run) => ({ key: runs[run].name, runs: [run] }));
  const groups = new Map();
  for (const run of some) {
    const key = by.map((name) => `${heading(name)} = ${cell(name, valueOf(run, name), 12)}`).join(", ");
    if (!groups.has(key)) groups.set(key, { key, runs: [] });
    groups.get(key).runs.push(run);
  }
  return [...groups.values()];
}

function spread(some, column) {
  const values = some.map((run) => valueOf(run, column)).filter((value) => typeof value === "number");
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return {
    count: values.length, mean: values.length ? mean : null,
    std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null,
  };
}

// Until the user chooses, the best few runs or groups are drawn. Without groups, runs without a
// score come last, and only if they have curves.
function firstDrawn() {
  let found = unitsOf(bestFirst(all(), score()));
  if (state.group.length) {
    const lower = lowerIsBetter(score());
    if (lower !== null) found = inOrder(found, (unit) => spread(unit.runs, score()).mean, !lower);
  } else {
    const known = found.filter((unit) => typeof valueOf(unit.runs[0], score()) === "number");
    const rest = found.filter((unit) => !known.includes(unit) && runs[unit.runs[0]].curves.length);
    found = lowerIsBetter(score()) === null ? [...known, ...rest].slice(-BEST) : [...known, ...rest];
  }
  return found.slice(0, BEST).map((unit) => unit.key);
}

// `{ key, runs, slot }`: the slot gives the colour, and stays when other runs are removed.
function drawn() {
  nowDrawn ??= findDrawn();
  return nowDrawn;
}

function findDrawn() {
  const all_ = new Map(unitsOf(all()).map((unit) => [unit.key, unit]));
  return (state.draw || firstDrawn())
    .map((key, slot) => (all_.has(key) ? { ...all_.get(key), slot } : null)).filter(Boolean);
}

function draw(keys, wanted) {
  const found = [...(state.draw || firstDrawn())];
  for (const key of keys) {
    const at = found.indexOf(key);
    if (!wanted && at >= 0) found[at] = null;
    if (!wanted || at >= 0) continue;
    const free = found.indexOf(null);
    if (free < 0) found.push(key);
    else found[free] = key;
  }
  while (found.length && found[found.length - 1] === null) found.pop();
  change({ draw: found });
}

// ---------------------------------------------------------------- colours and dashes

const COLOURS = 6;
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "14 4", "6 2 2 2 2 2", "1 5", "18 3 4 3"];

const colour = (slot) => `var(--c${slot % COLOURS})`;
const dash = (place) => DASHES[place % DASHES.length] || null;
const stroke = (slot) => ({ stroke: colour(slot), "stroke-dasharray": dash(Math.floor(slot / COLOURS)) });

function swatch(attributes, width = 2.2) {
  return make("svg", { class: "swatch", "aria-hidden": "true", viewBox: "0 0 34 12" },
    make("line", { x1: 0, x2: 34, y1: 6, y2: 6, "stroke-width": width, ...attributes }));
}
