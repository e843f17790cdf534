// The table of runs, or of groups of them: filtered, sorted, with the columns that are wanted.

const FIRST = 100;  // lines that are shown at first
const MANY = 30;  // lines that one click draws
let tableKey = null;  // what the table was made of
let marks = [];  // for each line, a function that shows whether the line is drawn

function shownColumns() {
  const chosen = state.cols.filter((name) => Object.hasOwn(data.columns, name));
  return chosen.length ? ["run", ...chosen.filter((name) => name !== "run")] : defaultColumns(score());
}

function someRuns() {
  const told = byId("wrong");
  try {
    const found = filtered(state.q);
    told.textContent = "";
    return found;
  } catch (error) {  // mostly a filter that is not complete yet
    told.textContent = error.message;
    return all();
  }
}

// The lines of the table. Each is an object with its values by column.
function linesOf(some) {
  if (!state.group.length) {
    const columns = shownColumns();
    return [columns, unitsOf(some).map((unit) => ({
      unit, row: Object.fromEntries(columns.map((name) => [name, valueOf(unit.runs[0], name)])),
    }))];
  }
  const of = score();
  const columns = ["run", "runs", `mean of ${of}`, "std", "sem", "min", "max"];
  return [columns, unitsOf(some).map((unit) => {
    const values = unit.runs.map((run) => valueOf(run, of)).filter((value) => typeof value === "number");
    const { count, mean, std } = spread(unit.runs, of);
    const sem = std === null ? null : std / Math.sqrt(count);
    const [min, max] = count ? [Math.min(...values), Math.max(...values)] : [null, null];
    return { unit, row: { run: unit.key, runs: unit.runs.length, [columns[2]]: mean, std, sem, min, max } };
  })];
}

function sorted(columns, lines) {
  const name = state.sort.replace(/^-/, "");
  if (columns.includes(name)) return inOrder(lines, (line) => line.row[name], state.sort.startsWith("-"));
  if (!state.group.length) {
    const place = new Map(bestFirst(all(), score()).map((run, index) => [run, index]));
    return inOrder(lines, (line) => place.get(line.unit.runs[0]), false);
  }
  const lower = lowerIsBetter(score());
  return lower === null ? lines : inOrder(lines, (line) => line.row[columns[2]], !lower);
}

function nameOf(unit) {
  if (state.group.length) return make("span", { class: "name" }, unit.key);
  return button(unit.key, () => {
    change({ run: unit.key });
    byId("run-title").focus();
    byId("run").scrollIntoView();
  }, { class: "name" });
}

function headOf(name, numeric) {
  const own = state.sort.replace(/^-/, "") === name;
  const order = own ? (state.sort.startsWith("-") ? "descending" : "ascending") : "none";
  const sort = button(name === "run" && state.group.length ? "group" : heading(name),
    () => change({ sort: state.sort === name ? `-${name}` : name }));
  return make("th", { scope: "col", "aria-sort": order, class: numeric ? "number" : null }, sort);
}

function lineOf({ unit, row }, columns, numeric, digits) {
  const tick = make("input", { type: "checkbox", "aria-label": `draw ${unit.key}` });
  const mark = make("span", { class: "draw" }, tick);
  on(tick, "change", () => draw([unit.key], tick.checked));
  marks.push((slots) => {
    tick.checked = slots.has(unit.key);
    while (tick.nextSibling) tick.nextSibling.remove();
    if (tick.checked) mark.append(swatch(stroke(slots.get(unit.key))));
  });
  const cells = columns.map((name) => {
    if (name === "run") return make("th", { scope: "row" }, nameOf(unit));
    const kind = numeric.has(name) ? "number" : name === "state" ? `state-${row[name]}` : null;
    return make("td", { class: kind }, cell(name, row[name], digits[name]));
  });
  // The mark comes after the name, because the name stays in sight when the table moves.
  cells.splice(1, 0, make("td", null, mark));
  return make("tr", null, ...cells);
}

function makeTable() {
  const some = someRuns();
  const [columns, unsorted] = linesOf(some);
  const lines = sorted(columns, unsorted);
  units = lines.map((line) => line.unit);
  const numeric = new Set(columns.filter((name) => lines.some(({ row }) => typeof row[name] === "number")));
  const digits = Object.fromEntries(columns.map((name) => [name, digitsOf(lines.map(({ row }) => row[name]))]));
  const heads = columns.map((name) => headOf(name, numeric.has(name)));
  heads.splice(1, 0, make("th", { scope: "col" }, "draw"));
  marks = [];
  const shown = state.more ? lines : lines.slice(0, FIRST);
  const body = shown.map((line) => lineOf(line, columns, numeric, digits));
  byId("lines").replaceChildren(make("table", null,
    make("thead", null, make("tr", null, ...heads)), make("tbody", null, ...body)));
  byId("count").textContent = `${some.length} of ${counted(runs.length, "run")}`
    + (state.group.length ? ` in ${counted(lines.length, "group")}` : "");
  byId("more").hidden = shown.length === lines.length;
  byId("more").textContent = `Show all ${lines.length} lines`;
}

// Controls are made for new data, not for each change: a new field would lose what is typed.
function makeTools() {
  const flip = (list, name, wanted) => (wanted ? [...list, name] : list.filter((each) => each !== name));
  const regroup = (name, wanted) => change({ group: flip(state.group, name, wanted), draw: null, sort: "" });
  const recolumn = (name, wanted) => change({ cols: flip(shownColumns(), name, wanted) });
  byId("choices").replaceChildren(
    ticksOf("Columns", data.names.filter((name) => name !== "run"),
      (name) => shownColumns().includes(name), recolumn),
    ticksOf("Group by", [...differing(), ...["metric", "state", "commit"].filter((name) => data.columns[name])],
      (name) => state.group.includes(name), regroup),
    make("label", null, "Score ", selectOf("Score", scoreColumns().length ? scoreColumns() : ["run"], score(),
      (of) => change({ of, draw: null }))));
}

function showTable() {
  const key = JSON.stringify([state.q, state.sort, state.of, state.cols, state.group, state.more, data.written]);
  if (key !== tableKey) {
    const focus = document.activeElement;
    const inside = byId("lines").contains(focus) ? [...byId("lines").querySelectorAll("button, input")].indexOf(focus) : -1;
    makeTable();
    if (inside >= 0) byId("lines").querySelectorAll("button, input")[inside]?.focus();
    if (byId("filter").value !== state.q) byId("filter").value = state.q;
  }
  tableKey = key;
  const slots = new Map(drawn().map(({ key: name, slot }) => [name, slot]));
  marks.forEach((mark) => mark(slots));
}

function startTable() {
  on(byId("filter"), "input", () => change({ q: byId("filter").value }));
  on(byId("more"), "click", () => change({ more: true }));
  on(byId("all"), "click", () => draw(units.slice(0, MANY).map((unit) => unit.key), true));
  on(byId("none"), "click", () => change({ draw: [] }));
  on(byId("best"), "click", () => change({ draw: null }));
  watchers.push(showTable);
}
