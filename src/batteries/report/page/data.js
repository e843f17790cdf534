// What the page knows about runs: `data` as Python wrote it, its columns, and curves as numbers.

let data = null;
let runs = [];
const known = new Map();  // results that were computed from the data, until new data comes

function once(name, find) {
  if (!known.has(name)) known.set(name, find());
  return known.get(name);
}

function take(text) {
  data = JSON.parse(text);
  known.clear();
  runs = data.runs;
  data.names = Object.keys(data.columns);
  data.places = new Map(runs.map((run, index) => [run.name, index]));
}

const valueOf = (run, column) => {
  const values = data.columns[column];
  return values === undefined ? null : values[run];
};
const all = () => runs.map((run, index) => index);
const numbersOf = (column) => once(`numbers ${column}`, () =>
  (data.columns[column] || []).filter((value) => typeof value === "number"));
const isNumeric = (column) => numbersOf(column).length > 0;

// ---------------------------------------------------------------- columns

const metricOf = (column) => once(`metric ${column}`, () => findMetric(column));

function findMetric(column) {
  if (column !== "validation" && column !== "test" && !column.startsWith("leaderboard.")) {
    return column.replace(/\.(last|best)$/, "");
  }
  const metrics = new Set(all().filter((run) => valueOf(run, "validation") !== null)
    .map((run) => valueOf(run, "metric")));
  return metrics.size === 1 ? [...metrics][0] : "";
}

// Whether lower is better; null if it is not known.
function lowerIsBetter(column) {
  const metric = metricOf(column);
  const said = (name) => (Object.hasOwn(data.minimization, name) ? data.minimization[name] : null);
  return said(metric) ?? said(metric.slice(metric.lastIndexOf("/") + 1));
}

// The column that a name stands for, as in the program's own tables.
function columnOf(name) {
  if (Object.hasOwn(data.columns, name)) return name;
  const ends = lowerIsBetter(name) === null ? ["last"] : ["best", "last"];
  const end = ends.find((each) => Object.hasOwn(data.columns, `${name}.${each}`));
  if (end) return `${name}.${end}`;
  const near = data.names.filter((each) => each.toLowerCase().includes(name.toLowerCase())).slice(0, 3);
  throw new Error(`there is no column ${name}${near.length ? `; the nearest: ${near.join(", ")}` : ""}`);
}

const differing = () => once("differing", () => data.arguments.filter((name) =>
  data.columns[name] && new Set(data.columns[name].map((value) => JSON.stringify(value ?? null))).size > 1));

function scoreColumns() {
  const own = data.names.filter((name) =>
    ["validation", "test"].includes(name) || /^leaderboard\.|\.(best|last)$/.test(name));
  return own.filter(isNumeric);
}

function defaultScore() {
  const columns = scoreColumns();
  return columns.find((name) => name === "validation")
    || columns.find((name) => name.endsWith(".best"))
    || columns.find((name) => /loss.*\.last$/.test(name)) || columns[0] || "run";
}

function defaultColumns(score) {
  const boards = data.names.filter((name) => /^leaderboard\.|- validation$/.test(name));
  const of = new Set(data.columns["validation of"] || []);
  of.delete("best epoch");
  of.delete("");
  const told = of.size ? ["validation of"] : [];
  const own = ["run", ...differing(), score, "validation", ...told, "spread", "test", ...boards,
    "state", "why", "seconds", "bytes"];
  return [...new Set(own)].filter((name) => Object.hasOwn(data.columns, name));
}

// Runs by a score, the best first. If the direction is not known, they keep their order.
function bestFirst(some, column) {
  if (column === "validation" && data.best.length) {
    const place = new Map(data.best.map((run, index) => [run, index]));
    return inOrder(some, (run) => place.get(run), false);  // runs without a score come last
  }
  const lower = lowerIsBetter(column);
  return lower === null ? some : inOrder(some, (run) => valueOf(run, column), !lower);
}

// ---------------------------------------------------------------- curves

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function stepsOf(written) {
  if (written.length === 1) return written[0];
  const [first, unit, width, text] = written;
  const bytes = bytesOf(text);
  const found = [first];
  for (let at = 0, step = first; at < bytes.length; at += width) {
    step += unit * (width === 1 ? bytes[at] : bytes[at] + 256 * bytes[at + 1]);
    found.push(step);
  }
  return found;
}

function valuesOf(written) {
  if (typeof written !== "string") return written;
  const bytes = bytesOf(written);
  const view = new DataView(new ArrayBuffer(4));
  const found = [];
  for (let at = 0; at < bytes.length; at += 3) {
    view.setUint32(0, (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8));
    const value = view.getFloat32(0);
    found.push(Number.isFinite(value) ? Number(value.toPrecision(5)) : null);
  }
  return found;
}

// The curves of a run. They are decoded on first use.
function curvesOf(index) {
  const run = runs[index];
  run.decoded ??= run.curves.map(([name, unit, lost, steps, values]) => {
    const at = name.lastIndexOf("/");
    return {
      name, unit, lost, group: name.slice(at + 1), part: at < 0 ? "" : name.slice(0, at),
      steps: stepsOf(steps), values: valuesOf(values),
    };
  });
  return run.decoded;
}

const curveGroups = () => once("groups", () => [...new Set(runs.flatMap((run) =>
  run.curves.map(([name]) => name.slice(name.lastIndexOf("/") + 1))))]);

// The value at a place, on a straight line between two known places.
function interpolate([from, to], at) {
  if (!from.length) return null;
  const next = nextOf(from, at);
  if (next === 0) return to[0];
  if (next === from.length) return to[to.length - 1];
  const part = (at - from[next - 1]) / (from[next] - from[next - 1]);
  return to[next - 1] + part * (to[next] - to[next - 1]);
}

// The first index whose value is not smaller.
function nextOf(sorted, value) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
