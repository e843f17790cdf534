// Any two columns against each other: a point for each run of the table.

const wide = (values) => values.length > 2 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 50;

// What is drawn at first: scores against the leaderboard, or an argument against the score.
function scatterColumns() {
  const numeric = data.names.filter(isNumeric);
  const has = (name) => numeric.includes(name);
  const board = has("validation") && numeric.find((name) => name.startsWith("leaderboard."));
  const argument = differing().find(has);
  const x = has(state.sx) ? state.sx : board ? "validation" : argument || numeric[0];
  const y = has(state.sy) ? state.sy : board || [score(), ...numeric].find((name) => has(name) && name !== x) || x;
  return { numeric, x, y };
}

// The values decide whether an axis is logarithmic, until the user decides it for both axes.
const isLog = (column) => (state.slog === null ? wide(numbersOf(column)) : state.slog) && numbersOf(column).some((v) => v > 0);

function startScatter() {
  const found = plot("", 340);
  const tools = make("p", { class: "tools" });
  const notes = make("div");
  const title = () => `${scatterColumns().y} against ${scatterColumns().x}`;
  const node = make("div", { class: "panel narrow" }, tools, found.svg, found.readout, notes);
  byId("scatter").append(node);

  function redraw(width) {
    const { numeric, x, y } = scatterColumns();
    if (x === undefined) return void found.empty(width, "no column has numbers");
    const [xlog, ylog] = [isLog(x), isLog(y)];
    const key = JSON.stringify([numeric, x, y, state.slog]);
    if (tools.dataset.of !== key) {
      tools.dataset.of = key;
      const logs = tickOf("log axes", xlog || ylog, (wanted) => change({ slog: wanted }));
      tools.replaceChildren(
        make("label", null, "Horizontal ", selectOf("Horizontal column", numeric, x, (sx) => change({ sx }))),
        make("label", null, "Vertical ", selectOf("Vertical column", numeric, y, (sy) => change({ sy }))),
        logs, saving(found, title));
    }
    const points = units.flatMap((unit) => unit.runs)
      .map((run) => ({ run, x: valueOf(run, x), y: valueOf(run, y) }))
      .filter((point) => typeof point.x === "number" && typeof point.y === "number"
        && isOn(xlog)(point.x) && isOn(ylog)(point.y))
      .sort((a, b) => a.x - b.x);
    found.svg.setAttribute("aria-label", `${title()}: arrow keys read the runs`);
    if (!points.length) return void found.empty(width, "no run of the table has a number in both columns");
    drawPoints(found, width, points, { x, y, xlog, ylog });
    const scores = /^(validation|test|leaderboard\..*)$/;
    notes.replaceChildren(...(scores.test(x) && scores.test(y)
      ? [note("On the dashed line, both scores are equal."), ...data.gaps.map(note)] : []));
  }

  drawWide(node, redraw, later);
}

function drawPoints(found, width, points, { x, y, xlog, ylog }) {
  const xs = range(points.map((point) => point.x), 0.06, xlog);
  const ys = range(points.map((point) => point.y), 0.08, ylog);
  const frame = frameOf({ width, height: found.height, xs, ys, xlog, ylog, xName: heading(x) });
  const [low, high] = [Math.max(xs[0], ys[0]), Math.min(xs[1], ys[1])];
  const scores = /^(validation|test|leaderboard\..*)$/;
  const equal = low < high && scores.test(x) && scores.test(y)
    ? [make("line", { class: "cursor", x1: frame.x(low), y1: frame.y(low), x2: frame.x(high), y2: frame.y(high) })] : [];
  const slots = new Map(drawn().flatMap((unit) => unit.runs.map((run) => [run, unit.slot])));
  const dots = points.map((point) => {
    const slot = slots.get(point.run);
    const look = slot === undefined
      ? { fill: "none", stroke: "var(--muted)", r: 4 }
      : { fill: colour(slot), stroke: "var(--raised)", r: 5.5 };
    return make("circle", { cx: frame.x(point.x), cy: frame.y(point.y), "data-run": runs[point.run].name, ...look });
  });
  const ring = make("circle", { r: 9, fill: "none", stroke: "var(--text)", "stroke-width": 1.5 });
  found.svg.setAttribute("viewBox", `0 0 ${width} ${found.height}`);
  found.svg.replaceChildren(...frame.parts,
    make("text", { x: frame.left + 6, y: frame.top + 6 }, heading(y)), ...equal, ...dots, ring);
  found.places = points;
  found.pixel = (point) => [frame.x(point.x), frame.y(point.y)];
  found.tell = (at) => {
    const point = points[at];
    ring.setAttribute("cx", frame.x(point.x));
    ring.setAttribute("cy", frame.y(point.y));
    const told = `${heading(x)} ${cell(x, point.x)}, ${heading(y)} ${cell(y, point.y)}`;
    const name = runs[point.run].name;
    found.readout.replaceChildren(make("div", null,
      button(name, () => change({ run: name }), { class: "name" }), ` ${told}`));
    return `${name}: ${told}`;
  };
  found.move(found.at, true);
}
