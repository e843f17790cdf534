// What differs between the runs that are drawn: arguments, scores, code.

const SIDE = 8;  // runs side by side, at most
const LINES = 1500;  // lines of a diff, at most

function startCompare() {
  const node = make("div");
  byId("compare").append(node);
  let pair = [0, 1];
  watchers.push(later(() => {
    const every = drawn().flatMap((unit) => unit.runs);
    const some = every.slice(0, SIDE);
    if (some.length < 2) {
      node.replaceChildren(note("Draw two or more runs to see what differs between them."));
      return;
    }
    const names = some.map((run) => runs[run].name);
    const scores = scoreColumns().filter((name) => some.some((run) => valueOf(run, name) !== null));
    pair = pair.map((place, index) => (place < some.length ? place : index));
    const code = make("div");
    const showCode = () => code.replaceChildren(codeOf(some[pair[0]], some[pair[1]]));
    const choose = (index) => selectOf(index ? "The second run, whose code is compared" : "The first run, whose code is compared", names, names[pair[index]], (name) => {
      pair[index] = names.indexOf(name);
      showCode();
    });
    node.replaceChildren(
      ...(every.length > SIDE ? [note(`The first ${SIDE} of ${every.length} drawn runs`)] : []),
      sideBySide("Arguments that differ", data.arguments, some, true),
      sideBySide("Scores and metrics", scores, some, false),
      make("h3", null, "Code"), make("p", { class: "tools" }, choose(0), choose(1)), code);
    showCode();
  }));
}

function sideBySide(title, columns, some, differ) {
  const rows = columns.filter((name) => data.columns[name] && (!differ
    || new Set(some.map((run) => JSON.stringify(valueOf(run, name) ?? null))).size > 1));
  const head = make("tr", null, make("th", { scope: "col" }, ""),
    ...some.map((run) => make("th", { scope: "col" }, runs[run].name)));
  const body = rows.map((name) => {
    const values = some.map((run) => valueOf(run, name));
    const digits = digitsOf(values);
    const best = bestOf(name, values);
    return make("tr", null, make("th", { scope: "row" }, heading(name)), ...values.map((value) => {
      const text = cell(name, value, digits);
      return make("td", { class: typeof value === "number" ? "number" : null },
        best !== undefined && value === best ? make("strong", null, `${text} (best)`) : text);
    }));
  });
  const none = differ ? "The arguments of these runs are the same." : "No scores or metrics of these runs are known.";
  return make("div", null, make("h3", null, title), rows.length
    ? box(title, make("table", null, make("thead", null, head), make("tbody", null, ...body))) : note(none));
}

function bestOf(column, values) {
  const lower = lowerIsBetter(column);
  const known = values.filter((value) => typeof value === "number");
  if (lower === null || known.length < 2 || new Set(known).size < 2) return undefined;
  return lower ? Math.min(...known) : Math.max(...known);
}

function codeOf(first, second) {
  const [a, b] = [first, second].map((run) => String(valueOf(run, "commit") || "unknown"));
  const [before, after] = [first, second].map((run) => data.shared[runs[run].diff]);
  const commits = a !== b ? `Commits: ${a} and ${b}.`
    : a === "unknown" ? "The commits of both runs are unknown." : `Both runs have commit ${a}.`;
  if (before === after) return note(`${commits}${before ? " The changes after the commit are the same." : ""}`);
  const lines = [before, after].map((text) => text.split("\n"));
  const cut = lines.some((each) => each.length > LINES) ? ` The first ${LINES} lines of the changes are compared.` : "";
  return make("div", null, note(commits + cut),
    box("The changes after the commit: - only in the first run, + only in the second", diffText(lineDiff(...lines))));
}

// The lines of two texts: common lines (the longest sequence), removed lines and added lines.
function lineDiff(a, b) {
  if (a.length > LINES || b.length > LINES) {
    [a, b] = [a.slice(0, LINES), b.slice(0, LINES)];
  }
  const wide_ = b.length + 1;
  const length = new Uint16Array((a.length + 1) * wide_);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      length[i * wide_ + j] = a[i] === b[j] ? 1 + length[(i + 1) * wide_ + j + 1]
        : Math.max(length[(i + 1) * wide_ + j], length[i * wide_ + j + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) found.push(` ${a[i]}`), i += 1, j += 1;
    else if (j >= b.length || (i < a.length && length[(i + 1) * wide_ + j] >= length[i * wide_ + j + 1])) found.push(`-${a[i++]}`);
    else found.push(`+${b[j++]}`);
  }
  return found;
}

function diffText(lines) {
  const kinds = { "+": "added", "-": "removed", "@": "hunk" };
  return make("pre", null, ...lines.map((line) => make("span", { class: kinds[line[0]] }, `${line}\n`)));
}
