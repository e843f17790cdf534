// One run: how it was made, what it logged, how it ended. And the best checkpoints of all.

const chosenRun = () => data.places.get(state.run) ?? drawn()[0]?.runs[0] ?? 0;
let runKey = null;

function startRun() {
  on(byId("which"), "change", () => change({ run: runs[byId("which").value].name }));
  watchers.push(later(() => {
    const key = `${chosenRun()} ${data.written}`;
    if (key !== runKey) showRun(chosenRun());
    runKey = key;
  }));
}

function showRun(index) {
  const run = runs[index];
  byId("which").value = String(index);
  byId("run-title").textContent = `Run ${run.name}`;
  const parts = [note(`${run.path} · ${run.state}`)];
  if (run.problems.length) {
    parts.push(make("h3", null, "Problems"),
      make("ul", { class: "state-failed" }, ...run.problems.map((text) => make("li", null, text))));
  }
  parts.push(...mediaOf(run));
  for (const [title, places] of Object.entries(run.facts)) {
    const pairs = places.map((place) => data.shared[place]);
    if (pairs.length) parts.push(folded(title, true, box(title, pairsTable(pairs))));
  }
  if (run.sessions.length) {
    const columns = ["started", "stopped", "state", "why", "host", "error"];
    const used = columns.filter((name) => run.sessions.some((session) => session[name] !== null));
    parts.push(folded("starts", true, box("starts", table(used, run.sessions))));
  }
  if (run.checkpoints.length) {
    parts.push(folded("checkpoints", true,
      box("checkpoints", table(["epoch", "metric", "score", "bytes", "file"], run.checkpoints))));
  }
  const diff = data.shared[run.diff];
  if (diff) parts.push(folded("diff", false, box("diff", diffText(diff.split("\n")))));
  if (run.log) parts.push(folded("end of the log", true, box("end of the log", make("pre", null, run.log))));
  const packages = data.shared[run.packages].map((place) => data.shared[place]);
  if (packages.length) parts.push(folded("packages", false, box("packages", pairsTable(packages))));
  if (parts.length === 1) parts.push(make("p", null, "Nothing else is recorded."));
  byId("detail").replaceChildren(...parts);
  const log = byId("detail").querySelector("[aria-label='end of the log']");
  if (log) log.scrollTop = log.scrollHeight;
}

// ---------------------------------------------------------------- pictures, histograms, texts

function mediaOf(run) {
  const names = new Map();
  for (const [kind, name, step, value] of run.media) {
    const key = JSON.stringify([kind, name]);
    if (!names.has(key)) names.set(key, { kind, name, steps: [] });
    names.get(key).steps.push([step, value]);
  }
  const nodes = [...names.values()].map(mediumOf);
  return nodes.length ? [folded("pictures, histograms and texts", true, make("div", { class: "media" }, ...nodes))] : [];
}

function mediumOf({ kind, name, steps }) {
  const place = make("div");
  const told = make("span", { class: "note" });
  const show = (at) => {
    const [step, value] = steps[at];
    told.textContent = `step ${number(step)}`;
    place.replaceChildren({ figure: pictureOf, histogram: histogramOf, text: (text) => make("pre", null, text) }[kind](
      value, `${name}, step ${number(step)}`));
  };
  const slider = steps.length > 1
    ? on(make("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1,
      "aria-label": `step of ${name}` }), "input", (event) => show(Number(event.target.value))) : null;
  show(steps.length - 1);
  return make("figure", { class: "panel", "data-kind": kind },
    make("figcaption", { class: "tools" }, make("strong", null, name), told, slider), place);
}

const pictureOf = (value, label) => make("img", { src: `data:image/png;base64,${value}`, alt: label });

function histogramOf([counts, low, high, lost], label) {
  const [width, height] = [300, 120];
  const most = Math.max(...counts, 1);
  const bars = counts.map((count, index) => {
    const tall = (count / most) * (height - 24);
    return make("rect", { class: "bar", x: (index * width) / counts.length, y: height - 18 - tall,
      width: Math.max(width / counts.length - 1, 0.5), height: tall });
  });
  const all_ = counts.reduce((sum, count) => sum + count, 0);
  const text = `${label}: ${counted(all_, "value")} from ${number(low)} to ${number(high)}${lost ? `, ${lost} not finite` : ""}`;
  return make("div", null,
    make("svg", { class: "plot still", role: "img", "aria-label": text, viewBox: `0 0 ${width} ${height}` }, ...bars,
      make("text", { x: 0, y: height - 4 }, number(low)),
      make("text", { x: width, y: height - 4, "text-anchor": "end" }, number(high))),
    ...(lost ? [note(counted(lost, "value is not finite", "values are not finite"))] : []));
}

// ---------------------------------------------------------------- checkpoints of all runs

function startCheckpoints() {
  const place = box("Top checkpoints");
  let chosen = "";
  watchers.push(later(() => {
    if (byId("checkpoints").dataset.of === data.written) return;
    byId("checkpoints").dataset.of = data.written;
    const known = runs.flatMap((run, index) => run.checkpoints.map((each) => ({ ...each, index })))
      .filter((each) => typeof each.score === "number");
    const kind = (each) => `${each.metric} (${each.minimization ? "lowest" : "highest"} first)`;
    const kinds = [...new Set(known.map(kind))];
    if (!kinds.includes(chosen)) [chosen] = kinds;
    const fill = () => {
      const alike = inOrder(known.filter((each) => kind(each) === chosen),
        (each) => (each.minimization ? each.score : -each.score), false).slice(0, 20);
      const columns = ["rank", "run", "stage", "epoch", "score", "bytes", "file"];
      place.replaceChildren(table(columns.filter((name) => name !== "stage" || alike.some((each) => each.stage)),
        alike.map((each, rank) => ({
          ...each, rank: rank + 1, run: nameOf({ key: runs[each.index].name }), file: `${runs[each.index].path}/${each.file}`,
        }))));
    };
    byId("top").replaceChildren(...(kinds.length
      ? [make("p", { class: "tools" }, make("label", null, "Metric ",
        selectOf("Metric", kinds, chosen, (name) => { chosen = name; fill(); }))), place]
      : [note("No run has checkpoint files with a score.")]));
    if (kinds.length) fill();
  }));
}
