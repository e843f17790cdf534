"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs;
  const $ = (id) => document.getElementById(id);
  // Okabe and Ito's colours, which the colour-blind tell apart; with dashes once they are used up.
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c"];
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
  const chosen = new Set(runs.slice(-3).map((run) => run.row.run));
  const sorting = { column: null, sign: 1 };

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.map((child) => (child === null || child === undefined ? "" : child)));
    return element;
  }

  function draw(name, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function shown(column, value) {
    if (value === null || value === undefined) return "";
    if (column === "seconds") {
      const whole = Math.round(value);
      const two = (number) => String(number).padStart(2, "0");
      return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
    }
    if (column === "started") return String(value).slice(0, 16).replace("T", " ");
    if (typeof value === "number" && !Number.isInteger(value)) {
      return (column.endsWith("- validation") && value > 0 ? "+" : "") + value.toFixed(4);
    }
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  const brief = (value) => Number(value.toPrecision(4)).toString();

  function options(select, names, current) {
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (names.includes(current)) select.value = current;
  }

  // ---------------------------------------------------------------- the table

  const columns = [...new Set(runs.flatMap((run) => Object.keys(run.row)))].filter((column) =>
    runs.some((run) => shown(column, run.row[column]) !== ""));
  const numeric = new Set(columns.filter((column) =>
    runs.some((run) => typeof run.row[column] === "number")));

  function header() {
    const cells = columns.map((column) => {
      const button = make("button", { type: "button" }, column === "seconds" ? "duration" : column);
      const cell = make("th", { scope: "col", class: numeric.has(column) ? "number" : "" }, button);
      button.addEventListener("click", () => {
        sorting.sign = sorting.column === column ? -sorting.sign : 1;
        sorting.column = column;
        for (const other of cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", sorting.sign > 0 ? "ascending" : "descending");
        body();
      });
      return cell;
    });
    const first = make("th", { scope: "col" }, make("span", { style: "padding:.3rem .6rem" }, "curve"));
    $("runs").tHead.replaceChildren(make("tr", {}, first, ...cells));
  }

  function compared(a, b) {
    const [x, y] = [a.row[sorting.column], b.row[sorting.column]];
    const missing = (value) => value === null || value === undefined || value === "";
    if (missing(x) || missing(y)) return missing(x) - missing(y); // they stay behind
    const order = typeof x === "number" && typeof y === "number" ? x - y
      : String(x).localeCompare(String(y), "en", { numeric: true });
    return sorting.sign * order;
  }

  function body() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = runs.filter((run) => {
      const text = columns.map((column) => shown(column, run.row[column])).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (sorting.column !== null) fitting.sort(compared);
    $("runs").tBodies[0].replaceChildren(...fitting.map(line));
    $("count").textContent = `${fitting.length} of ${runs.length}`;
  }

  function line(run) {
    const name = run.row.run;
    const box = make("input", { type: "checkbox", "aria-label": `curve of ${name}` });
    box.checked = chosen.has(name);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(name); else chosen.delete(name);
      metrics();
      curves();
    });
    const cells = columns.map((column) => {
      const value = shown(column, run.row[column]);
      if (column === "run") {
        const button = make("button", { type: "button" }, value);
        button.addEventListener("click", () => {
          $("which").value = name;
          details();
          $("run").scrollIntoView();
          $("which").focus();
        });
        return make("td", {}, button);
      }
      const kind = column === "state" ? run.row.state : numeric.has(column) ? "number" : "";
      return make("td", { class: kind }, value);
    });
    return make("tr", {}, make("td", {}, box), ...cells);
  }

  // ---------------------------------------------------------------- charts

  const WIDTH = 900, HEIGHT = 340, LEFT = 66, RIGHT = 14, TOP = 10, BOTTOM = 40;

  function ticks(low, high, count = 6) {
    const rough = (high - low) / count;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * size).find((each) => each >= rough);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(n * step);
    return found;
  }

  function span(values) {
    const low = Math.min(...values), high = Math.max(...values);
    const more = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    return [low - more, high + more];
  }

  function frame(label, xs, ys, names) {
    const narrow = window.innerWidth < 600;
    const width = narrow ? 420 : WIDTH;
    const across = [Math.min(...xs), Math.max(...xs)];
    if (across[0] === across[1]) { across[0] -= 1; across[1] += 1; }
    const up = span(ys);
    const x = (value) => LEFT + (value - across[0]) / (across[1] - across[0]) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value - up[0]) / (up[1] - up[0]) * (HEIGHT - TOP - BOTTOM);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", tabindex: "0", "aria-label": label });
    for (const value of ticks(...across, narrow ? 4 : 8)) {
      svg.append(draw("line", { class: "grid", x1: x(value), x2: x(value), y1: TOP, y2: HEIGHT - BOTTOM }));
      svg.append(draw("text", { x: x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, brief(value)));
    }
    for (const value of ticks(...up)) {
      svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      const told = names.log ? brief(10 ** value) : brief(value);
      svg.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, told));
    }
    svg.append(draw("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, names.x));
    return { svg, x, y, across, width };
  }

  function look(index) {
    const dash = DASHES[Math.floor(index / COLOURS.length) % DASHES.length];
    return { stroke: COLOURS[index % COLOURS.length], "stroke-dasharray": dash, "stroke-width": 2, fill: "none" };
  }

  function metrics() {
    const selected = runs.filter((run) => chosen.has(run.row.run));
    const names = [...new Set((selected.length ? selected : runs).flatMap((run) => Object.keys(run.curves)))];
    options($("metric"), names.sort(), $("metric").value);
  }

  function curves() {
    const metric = $("metric").value, log = $("log").checked;
    const lines = runs.filter((run) => chosen.has(run.row.run) && run.curves[metric])
      .map((run) => ({ name: run.row.run, points: run.curves[metric]
        .filter(([, value]) => !log || value > 0)
        .map(([step, value]) => [step, log ? Math.log10(value) : value]) }))
      .filter((each) => each.points.length);
    if (!lines.length) {
      $("curves").replaceChildren(make("p", { class: "quiet" }, "No chosen run has this metric: choose runs in the table."));
      return;
    }
    const all = lines.flatMap((each) => each.points);
    const { svg, x, y, across, width } = frame(`${metric} of ${lines.length} runs`,
      all.map((point) => point[0]), all.map((point) => point[1]), { x: "step", log });
    const legend = make("ul", { class: "legend" });
    lines.forEach((each, index) => {
      const path = each.points.map(([a, b], n) => `${n ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
      svg.append(draw("path", { ...look(index), d: path, "data-run": each.name }));
      if (each.points.length === 1) {
        const [a, b] = each.points[0];
        svg.append(draw("circle", { cx: x(a), cy: y(b), r: 4, fill: look(index).stroke }));
      }
      const mark = draw("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" },
        draw("line", { ...look(index), x1: 0, x2: 32, y1: 5, y2: 5 }));
      legend.append(make("li", {}, mark, each.name));
    });
    const cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    svg.append(cursor);
    const steps = [...new Set(all.map((point) => point[0]))].sort((a, b) => a - b);
    let at = steps.length - 1;
    function read() {
      const step = steps[at];
      cursor.setAttribute("x1", x(step));
      cursor.setAttribute("x2", x(step));
      cursor.setAttribute("visibility", "visible");
      const told = lines.map((each) => {
        const point = each.points.reduce((best, one) =>
          (Math.abs(one[0] - step) < Math.abs(best[0] - step) ? one : best));
        return `${each.name}: ${brief(log ? 10 ** point[1] : point[1])}`;
      });
      $("readout").textContent = `step ${step}: ${told.join("; ")}`;
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width * width;
      const step = across[0] + (place - LEFT) / (width - LEFT - RIGHT) * (across[1] - across[0]);
      at = steps.reduce((best, one, n) => (Math.abs(one - step) < Math.abs(steps[best] - step) ? n : best), 0);
      read();
    });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      at = Math.max(0, Math.min(steps.length - 1, at + move));
      read();
    });
    $("curves").replaceChildren(svg, legend);
  }

  function scatter() {
    const others = columns.filter((column) => column === "test" || column.startsWith("leaderboard."));
    $("against-section").hidden = !others.length;
    if (!others.length) return;
    options($("against"), others, $("against").value);
    const other = $("against").value;
    const known = runs.filter((run) => typeof run.row.validation === "number" && typeof run.row[other] === "number");
    const { svg, x, y } = frame(`validation against ${other}`, span(known.map((run) => run.row.validation)),
      known.map((run) => run.row[other]), { x: "validation" });
    for (const run of known) {
      const told = `${run.row.run}: validation ${brief(run.row.validation)}, ${other} ${brief(run.row[other])}`;
      svg.append(draw("circle", { cx: x(run.row.validation), cy: y(run.row[other]), r: 5, fill: COLOURS[0], "fill-opacity": 0.75 },
        draw("title", {}, told)));
    }
    $("scatter").replaceChildren(svg);
  }

  // ---------------------------------------------------------------- one run

  function pairs(values) {
    const rows = Object.entries(values).map(([name, value]) =>
      make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, shown(name, value))));
    return make("div", { class: "scroll" }, make("table", { class: "details" }, make("tbody", {}, ...rows)));
  }

  function folded(title, content, open = false) {
    const element = make("details", {}, make("summary", {}, title), content);
    element.open = open;
    return element;
  }

  function details() {
    const run = runs.find((each) => each.row.run === $("which").value);
    const parts = [];
    for (const problem of run.problems) parts.push(make("p", { class: "failed" }, problem));
    for (const gap of run.gaps) parts.push(make("p", {}, gap));
    if (Object.keys(run.args).length) parts.push(folded("Arguments", pairs(run.args), true));
    if (run.checkpoints.length) {
      const rows = run.checkpoints.map((each) => make("tr", {}, ...Object.entries(each).map(([name, value]) =>
        make("td", { class: typeof value === "number" ? "number" : "" }, shown(name, value)))));
      const heads = Object.keys(run.checkpoints[0]).map((name) => make("th", { scope: "col" }, name));
      parts.push(folded("Best checkpoints", make("div", { class: "scroll" },
        make("table", {}, make("tbody", {}, make("tr", {}, ...heads), ...rows))), true));
    }
    const about = { ...run.environment, starts: run.starts, ...run.git, command: run.command.join(" ") };
    parts.push(folded("Environment", pairs({ ...about, ...run.variables })));
    parts.push(folded("Packages", pairs(data.packages[run.packages] || {})));
    if (run.diff) parts.push(folded("Changed since the commit", make("pre", { tabindex: "0" }, run.diff)));
    if (run.log) parts.push(folded("End of the log", make("pre", { tabindex: "0" }, run.log), true));
    $("details").replaceChildren(...parts);
  }

  $("title").textContent = `Runs of ${data.title}`;
  $("written").textContent = `Written ${data.written.replace("T", " ").replace("+00:00", " UTC")}`;
  $("gaps").append(...data.gaps.map((text) => make("li", {}, text)));
  options($("which"), runs.map((run) => run.row.run), runs[runs.length - 1].row.run);
  header();
  body();
  metrics();
  curves();
  scatter();
  details();
  $("filter").addEventListener("input", body);
  $("metric").addEventListener("change", curves);
  $("log").addEventListener("change", curves);
  $("against").addEventListener("change", scatter);
  $("which").addEventListener("change", details);
  let narrow = window.innerWidth < 600;
  window.addEventListener("resize", () => {
    if (narrow !== window.innerWidth < 600) { narrow = !narrow; curves(); scatter(); }
  });
})();
