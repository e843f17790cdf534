// Curves over steps, epochs or time: of runs, or of groups as their mean with a band.

const FOLD = /(^|\/)fold[_-]?(\d+)(?=\/|$)/i;
const PANELS = 3;
const FAR = 20;  // a value is an outlier beyond so many times the range of nearly all values
const panels = [];

// ---------------------------------------------------------------- which panels

function firstGroups() {
  const groups = curveGroups();
  const metrics = new Set(data.columns.metric || []);
  const find = (...tests) => tests.map((test) => groups.find(test)).find(Boolean);
  const wanted = [
    find((name) => name === "loss", (name) => /loss/i.test(name)),
    find((name) => metrics.has(name) && !/loss/i.test(name), (name) => /acc|auc|f1|score|metric/i.test(name)),
    find((name) => /^lr$|learning.?rate/i.test(name), (name) => /lr/i.test(name)),
  ];
  return [...new Set([...wanted.filter(Boolean), ...groups])].slice(0, PANELS);
}

function shownGroups() {
  const known = new Set(curveGroups());
  const chosen = state.panels.filter((name) => known.has(name));
  return chosen.length ? chosen : firstGroups();
}

// ---------------------------------------------------------------- points of a curve

const unitOf = (curve) => (curve.unit === "epoch" ? "epoch" : state.x);

function pointsOf(run, curve) {
  const unit = unitOf(curve);
  const along = { epoch: runs[run].epochs, time: runs[run].clock }[unit];
  if (curve.unit === "epoch" || unit === "step") {
    return curve.steps.map((step, index) => [step, curve.values[index]]);
  }
  return along[0].length ? curve.steps.map((step, index) => [interpolate(along, step), curve.values[index]]) : [];
}

// An exponential mean without bias at its start. Its length is some per cent of the curve's length.
function smoothed(points) {
  if (!state.smooth || points.length < 3) return points;
  const wide = ((points[points.length - 1][0] - points[0][0]) * state.smooth) / 100 || 1;
  let [sum, weight, before] = [0, 0, points[0][0]];
  return points.map(([x, y]) => {
    if (y === null) return [x, null];
    const kept = Math.exp((before - x) / wide);
    [sum, weight, before] = [sum * kept + y, weight * kept + 1, x];
    return [x, sum / weight];
  });
}

function valueAt(points, x) {
  if (!points.length || x < points[0][0] || x > points[points.length - 1][0]) return null;
  const xs = points.map((point) => point[0]);
  const next = nextOf(xs, x);
  if (xs[next] === x) return points[next][1];
  const [a, b] = [points[next - 1], points[next]];
  if (a[1] === null || b[1] === null) return null;
  return a[1] + ((x - a[0]) / (b[0] - a[0])) * (b[1] - a[1]);
}

// The mean of several curves, and their standard deviation.
function meanOf(many) {
  const xs = [...new Set(many.flatMap((points) => points.map((point) => point[0])))].sort((a, b) => a - b);
  const every = Math.max(1, Math.ceil(xs.length / 400));
  const kept = xs.filter((x, index) => index % every === 0 || index === xs.length - 1);
  return kept.map((x) => {
    const values = many.map((points) => valueAt(points, x)).filter((value) => value !== null);
    const mean = values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    return [x, mean, values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0];
  });
}

// What a panel draws: a series for each part of each unit.
function seriesOf(group) {
  const found = [];
  for (const unit of drawn()) {
    const parts = new Map();
    for (const run of unit.runs) {
      for (const curve of curvesOf(run).filter((each) => each.group === group)) {
        if (!parts.has(curve.part)) parts.set(curve.part, { curve, lost: 0, many: [] });
        const part = parts.get(curve.part);
        part.lost += curve.lost;
        part.many.push(pointsOf(run, curve));
      }
    }
    for (const [part, { curve, lost, many }] of parts) {
      const known = many.filter((points) => points.length);
      if (!known.length) continue;
      const raw = known.length > 1 ? meanOf(known) : known[0];
      found.push({ unit, part, curve, lost, raw, count: known.length, points: smoothed(raw) });
    }
  }
  return found;
}

// Parts look different: folds have other dashes, other parts other widths. If one run is drawn, its
// folds have other colours.
function looksOf(series) {
  const parts = [...new Set(series.map((each) => each.part))].sort(natural.compare);
  const folds = parts.map((part) => FOLD.exec(part)).map((found) => (found ? Number(found[2]) : -1));
  const rests = [...new Set(parts.map((part) => part.replace(FOLD, "$1")))];
  const alone = new Set(series.map((each) => each.unit.key)).size === 1 && folds.some((fold) => fold >= 0);
  const order = [...new Set(folds)].sort((a, b) => a - b);
  return (each) => {
    const at = parts.indexOf(each.part);
    const fold = folds[at] < 0 ? 0 : order.indexOf(folds[at]);
    const rest = rests.indexOf(each.part.replace(FOLD, "$1"));
    return {
      stroke: colour(alone ? fold : each.unit.slot),
      "stroke-dasharray": dash(alone ? fold : fold + Math.floor(each.unit.slot / COLOURS)),
      "stroke-width": 1.3 + 1.3 * Math.min(rest, 3),
    };
  };
}

// ---------------------------------------------------------------- the frame of a panel

// The ends of the axis. With "clip outliers", the few values that are far from all others lie outside.
function limitsOf(values, log) {
  const known = values.filter(isOn(log)).sort((a, b) => a - b);
  if (!state.clip || known.length < 20) return range(known, 0.05, log);
  const f = log ? Math.log10 : (value) => value;
  const at = (share) => f(known[Math.round(share * (known.length - 1))]);
  const wide = FAR * (at(0.95) - at(0.05)) || Infinity;
  return range(known.filter((value) => f(value) <= at(0.95) + wide && f(value) >= at(0.05) - wide), 0.05, log);
}

// A line with a break where a value is not finite. Values beyond the axis are drawn at its edge.
function linePath(points, frame, log) {
  let path = "";
  let open = false;
  const inside = (pixel) => Math.min(Math.max(pixel, frame.top - 4), frame.bottom + 4);
  for (const [x, y] of points) {
    if (!isOn(log)(y)) { open = false; continue; }
    path += `${open ? "L" : "M"}${frame.x(x).toFixed(1)} ${inside(frame.y(y)).toFixed(1)}`;
    open = true;
  }
  return path;
}

function bandPath(points, frame, log, [low, high]) {
  const known = points.filter(([, y, std]) => isOn(log)(y) && std > 0);
  if (known.length < 2) return "";
  const edge = (sign) => known.map(([x, y, std]) =>
    `${frame.x(x).toFixed(1)} ${frame.y(Math.min(Math.max(y + sign * std, low), high)).toFixed(1)}`);
  return `M${[...edge(1), ...edge(-1).reverse()].join("L")}Z`;
}

const lonely = (points, log) => points.filter(([, y], index) => isOn(log)(y)
  && !isOn(log)(points[index - 1]?.[1] ?? null) && !isOn(log)(points[index + 1]?.[1] ?? null));

// Triangles at the edge, for values that lie outside. Values side by side share one triangle.
function outside(points, frame, [low, high], fill) {
  const places = new Map();
  for (const [x, y] of points) {
    if (y === null || (y <= high && y >= low)) continue;
    const above = y > high;
    places.set(`${above}${Math.round(frame.x(x) / 9)}`, [frame.x(x), above]);
  }
  return [...places.values()].map(([x, above]) => {
    const [tip, foot] = above ? [frame.top - 6, frame.top + 3] : [frame.bottom + 6, frame.bottom - 3];
    return make("polygon", { class: "outlier", fill, points: `${x},${tip} ${x - 5},${foot} ${x + 5},${foot}` });
  });
}

function linesOfSeries(each, look, frame, limits) {
  const looks = { class: "curve", ...look };
  const points = each.points;
  const raw = state.smooth && each.count === 1
    ? make("path", { ...looks, class: "curve raw", d: linePath(each.raw, frame, state.log) }) : null;
  const band = each.count > 1
    ? make("path", { class: "spread", fill: look.stroke, d: bandPath(each.raw, frame, state.log, limits) }) : null;
  return make("g", { "data-run": each.unit.key, "data-part": each.part }, band, raw,
    make("path", { ...looks, d: linePath(points, frame, state.log) }),
    ...lonely(points, state.log).map(([x, y]) => make("circle", { cx: frame.x(x), cy: frame.y(y), r: 3, fill: look.stroke })),
    ...outside(each.raw, frame, limits, look.stroke));
}

const showX = (unit, x) => (unit === "time" ? duration(x) : number(x));

// ---------------------------------------------------------------- a panel

function panel(place) {
  const group = () => shownGroups()[place];
  const own = { unit: "step" };
  const found = plot("", 260, {
    moved: (x) => panels.forEach((other) => other !== own && other.unit === own.unit && other.show(x)),
    dragged: (from, to) => change({ zoom: from === null ? null : [own.frame.x.back(from), own.frame.x.back(to)] }),
    key: (key, x) => zoomByKey(key, x, own),
  });
  const key = make("p", { class: "key" });
  const tools = make("p", { class: "tools" });
  const node = make("div", { class: "panel" }, tools, found.svg, key, found.readout);
  own.show = (x) => {
    const at = Math.min(nextOf(found.places, x), found.places.length - 1);
    const before = Math.max(at - 1, 0);
    if (found.places.length) found.move(x - found.places[before] < found.places[at] - x ? before : at, true);
  };

  function redraw(width) {
    const name = group();
    if (name === undefined) return;
    if (tools.dataset.of !== JSON.stringify([curveGroups(), name])) {
      tools.dataset.of = JSON.stringify([curveGroups(), name]);
      tools.replaceChildren(
        selectOf("What is drawn", curveGroups(), name, (chosen) =>
          change({ panels: shownGroups().map((each, index) => (index === place ? chosen : each)) })),
        saving(found, group));
    }
    found.svg.setAttribute("aria-label", `${name}: arrow keys read the values, + and - zoom`);
    const series = seriesOf(name);
    if (!series.length) {
      key.replaceChildren();
      const told = drawn().length ? (state.x === "step" ? "no run that is drawn has this metric" : `the ${state.x} of these values is not known`)
        : "no run is drawn: tick one in the table";
      found.empty(width, told);
      return;
    }
    fill(width, name, series);
  }

  function fill(width, name, series) {
    own.unit = unitOf(series[0].curve);
    const xs = [...new Set(series.flatMap((each) => each.points.map((point) => point[0])))].sort((a, b) => a - b);
    const full = range(xs, 0);
    const zoom = state.zoom && own.unit === state.x && state.zoom[0] < full[1] && state.zoom[1] > full[0];
    const limits = zoom ? state.zoom : full;
    const inside = (points) => points.filter(([x], index) =>
      (points[index + 1]?.[0] ?? x) >= limits[0] && (points[index - 1]?.[0] ?? x) <= limits[1]);
    const some = series.map((each) => ({ ...each, raw: inside(each.raw), points: inside(each.points) }));
    const values = some.flatMap((each) => (each.count > 1
      ? each.raw.flatMap(([, y, std]) => (y === null ? [] : [y - std, y + std])) : each.raw.map((point) => point[1])));
    const ys = limitsOf(values, state.log);
    const frame = frameOf({
      width, height: found.height, xs: limits, ys, ylog: state.log, xName: own.unit,
      whole: own.unit !== "time", show: (x) => showX(own.unit, x),
    });
    own.frame = frame;
    const look = looksOf(series);
    found.svg.setAttribute("viewBox", `0 0 ${width} ${found.height}`);
    const clip = make("clipPath", { id: `clip-${place}` }, make("rect",
      { x: frame.left - 5, y: 0, width: frame.right - frame.left + 10, height: frame.bottom + 8 }));
    const lines = make("g", { "clip-path": `url(#clip-${place})` },
      ...some.map((each) => linesOfSeries(each, look(each), frame, ys)));
    own.cursor = make("line", { class: "cursor", y1: frame.top, y2: frame.bottom });
    own.dots = make("g");
    found.svg.replaceChildren(clip, ...frame.parts, lines, own.cursor, own.dots);
    key.replaceChildren(...keyOf(name, series, look), ...(clipped(some, ys) ? [make("span", null, clipped(some, ys))] : []));
    const last = found.at === found.places.length - 1 || !found.places.length;
    found.places = xs.filter((x) => x >= limits[0] && x <= limits[1]);
    found.pixel = (x) => [frame.x(x), null];
    found.tell = (at) => tellAt(found.places[at], own, found, some, look, ys);
    found.move(last ? found.places.length - 1 : found.at, true);
  }

  panels.push(own);
  drawWide(node, redraw);
  return node;
}

function keyOf(name, series, look) {
  const first = new Map(series.map((each) => [each.part, each]).reverse());
  if (first.size < 2) return [make("span", null, [...first.keys()][0] ? `${[...first.keys()][0]}/${name}` : name)];
  return [...first].sort(([a], [b]) => natural.compare(a, b)).map(([part, each]) => make("span", null,
    swatch({ ...look(each), ...(new Set(series.map(({ unit }) => unit.key)).size > 1 ? { stroke: "var(--muted)" } : {}) },
      look(each)["stroke-width"]), part ? `${part}/${name}` : name));
}

function clipped(series, [low, high]) {
  const count = series.flatMap((each) => each.raw).filter(([, y]) => y !== null && (y > high || y < low)).length;
  return count ? `${counted(count, "point lies", "points lie")} outside the plot: triangles mark the places` : "";
}

function tellAt(x, own, found, series, look, [low, high]) {
  own.cursor.setAttribute("x1", own.frame.x(x));
  own.cursor.setAttribute("x2", own.frame.x(x));
  own.dots.replaceChildren();
  const told = [];
  const several = new Set(series.map((each) => each.part)).size > 1;
  const items = series.filter((each) => each.points.length).map((each) => {
    const xs = each.points.map((point) => point[0]);
    const next = Math.min(nextOf(xs, x), xs.length - 1);
    const at = next > 0 && x - xs[next - 1] <= xs[next] - x ? next - 1 : next;
    const [there, value] = each.points[at];
    const own_ = each.raw[at];
    if (isOn(state.log)(value) && value >= low && value <= high) {
      own.dots.append(make("circle", { cx: own.frame.x(there), cy: own.frame.y(value), r: 3.5, fill: look(each).stroke }));
    }
    const other = there === x ? "" : ` (${own.unit} ${showX(own.unit, there)})`;
    const lost = each.lost ? ` (${each.lost} not finite)` : "";
    const label = `${each.unit.key} ${several ? each.part : ""}`.trim();
    const std = each.count > 1 && own_[2] ? ` ± ${number(own_[2], 2)}` : "";
    const shown = value === null ? "not finite" : number(value) + std;
    told.push(`${label}${other} ${shown}`);
    return make("li", null, swatch(look(each), look(each)["stroke-width"]),
      make("span", null, label + other + lost), make("b", null, shown));
  });
  const where = `${own.unit} ${showX(own.unit, x)}`;
  found.readout.replaceChildren(make("div", null, where), make("ul", null, ...items));
  return `${where}: ${told.join("; ")}`;
}

function zoomByKey(key, x, own) {
  if (key === "Escape" && state.zoom) change({ zoom: null });
  else if ((key === "+" || key === "-") && own.frame && own.unit === state.x) {
    const [from, to] = [own.frame.x.back(own.frame.left), own.frame.x.back(own.frame.right)];
    const half = ((to - from) / 2) * (key === "+" ? 0.5 : 2);
    change({ zoom: key === "-" && !state.zoom ? null : [x - half, x + half] });
  } else return false;
  return true;
}

// ---------------------------------------------------------------- what all panels have

function showCurveTools() {
  byId("legend").replaceChildren(...drawn().map((unit) => make("li", null, swatch(stroke(unit.slot)), nameOf(unit))));
  byId("x").value = state.x;
  byId("log").checked = state.log;
  byId("clip").checked = state.clip;
  byId("smooth").value = state.smooth;
  byId("smoothed").textContent = `${state.smooth} %`;
  byId("unzoom").hidden = !state.zoom;
}

function startCurves() {
  on(byId("x"), "change", () => change({ x: byId("x").value, zoom: null }));
  on(byId("log"), "change", () => change({ log: byId("log").checked }));
  on(byId("clip"), "change", () => change({ clip: byId("clip").checked }));
  on(byId("smooth"), "input", () => change({ smooth: Number(byId("smooth").value) }));
  on(byId("unzoom"), "click", () => change({ zoom: null }));
  on(byId("add"), "click", () => change({ panels: [...shownGroups(), curveGroups().find((name) => !shownGroups().includes(name)) || curveGroups()[0]] }));
  on(byId("drop"), "click", () => change({ panels: shownGroups().slice(0, -1) }));
  watchers.push(showCurveTools, showPanels);
}

// Adds panels and hides those that are not wanted. Each panel redraws itself.
function showPanels() {
  const count = shownGroups().length;
  byId("drop").hidden = count < 2;
  const nodes = byId("panels").children;
  byId("nothing").hidden = count > 0;
  while (panels.length < count) byId("panels").append(panel(panels.length));
  [...nodes].forEach((node, index) => { node.hidden = index >= count; });
}
