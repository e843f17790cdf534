// Parallel coordinates: each run of the table is a line across the axes of several columns.

const MOST_AXES = 8;

function axesOf() {
  const known = state.par.filter((name) => Object.hasOwn(data.columns, name));
  if (known.length) return known;
  const of = score();
  return [...differing().slice(0, MOST_AXES - 1), ...(isNumeric(of) ? [of] : [])];
}

// The scale of a column: places of values from 0 to 1, and texts at both ends or at each text.
function scaleOf(column) {
  const values = data.columns[column];
  const texts = [...new Set(values.filter((value) => !isMissing(value) && typeof value !== "number").map(String))];
  if (texts.length) {
    const places = [...new Set(values.filter((value) => !isMissing(value)).map(String))].sort(natural.compare);
    const at = (value) => (isMissing(value) ? null : (places.indexOf(String(value)) + 0.5) / places.length);
    const marks = places.length <= 8 ? places.map((text) => [at(text), text]) : [];
    return { at, marks };
  }
  const log = wide(numbersOf(column));
  const [low, high] = range(numbersOf(column), 0, log);
  const own = axis([low, high], 0, 1, log);
  const at = (value) => (typeof value === "number" && isOn(log)(value) ? own(value) : null);
  return { at, marks: own.ticks(4).map((value) => [own(value), cell(column, value)]), log };
}

function startParallel() {
  const found = plot("", 300);
  const tools = make("p", { class: "tools" });
  const node = make("div", { class: "panel" }, tools, found.svg, found.readout);
  byId("parallel").append(node);

  function redraw(width) {
    const names = axesOf();
    if (tools.dataset.of !== JSON.stringify(data.names)) {
      tools.dataset.of = JSON.stringify(data.names);
      tools.replaceChildren(
        ticksOf("Axes", data.names.filter((name) => name !== "run"), (name) => axesOf().includes(name),
          (name, wanted) => change({ par: wanted ? [...axesOf(), name] : axesOf().filter((each) => each !== name) })),
        saving(found, () => "parallel coordinates"));
    }
    if (names.length < 2) return void found.empty(width, "two columns are needed: choose them under Axes");
    found.svg.setAttribute("aria-label", `${names.join(", ")} of each run: arrow keys read the runs`);
    drawParallel(found, width, names);
  }

  drawWide(node, redraw, later);
}

function drawParallel(found, width, names) {
  const [top, bottom, left, right] = [34, found.height - 16, 60, width - 60];
  const across = (index) => left + (index / (names.length - 1)) * (right - left);
  const scales = names.map(scaleOf);
  const some = units.flatMap((unit) => unit.runs);
  const pathOf = (run) => {
    let path = "";
    scales.forEach(({ at }, index) => {
      const part = at(valueOf(run, names[index]));
      if (part === null) return;
      path += `${path ? "L" : "M"}${across(index).toFixed(1)} ${(bottom - part * (bottom - top)).toFixed(1)}`;
    });
    return path;
  };
  const slots = drawn().flatMap((unit) => unit.runs.map((run) => [run, unit.slot]));
  const own = new Set(slots.map(([run]) => run));
  const rest = make("path", { class: "curve rest", d: some.filter((run) => !own.has(run)).map(pathOf).join("") });
  const lines = slots.map(([run, slot]) => make("path",
    { class: "curve", "data-run": runs[run].name, "stroke-width": 2, d: pathOf(run), ...stroke(slot) }));
  const axes = names.flatMap((name, index) => [
    make("line", { class: "axis", x1: across(index), x2: across(index), y1: top, y2: bottom }),
    make("text", { x: across(index), y: index % 2 && width < 640 ? 26 : 14, "text-anchor": "middle" },
      (name.length > 22 ? `…${name.slice(-21)}` : heading(name)) + (scales[index].log ? " (log)" : "")),
    ...scales[index].marks.map(([part, text]) => make("text",
      { class: "halo", x: across(index) + 5, y: bottom - part * (bottom - top) + 4 },
      text.length > 12 ? `${text.slice(0, 11)}…` : text)),
  ]);
  const chosen = make("path", { class: "curve chosen" });
  found.svg.setAttribute("viewBox", `0 0 ${width} ${found.height}`);
  found.svg.replaceChildren(rest, ...lines, chosen, ...axes);
  found.places = some;
  const heights = new Map(some.map((run) => [run, scales.map(({ at }, index) => at(valueOf(run, names[index])))]));
  found.pixel = (run) => {
    const parts = heights.get(run);
    const index = parts.findIndex((part) => part !== null);
    return index < 0 ? [-1e4, 0] : [across(index), bottom - parts[index] * (bottom - top)];
  };
  found.tell = (at) => {
    const run = some[at];
    chosen.setAttribute("d", pathOf(run));
    const told = names.map((name) => `${heading(name)} ${cell(name, valueOf(run, name))}`).join(", ");
    found.readout.replaceChildren(make("div", null,
      button(runs[run].name, () => change({ run: runs[run].name }), { class: "name" }), ` ${told}`));
    return `${runs[run].name}: ${told}`;
  };
  if (some.length) found.move(found.at, true);
}
