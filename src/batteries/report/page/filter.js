// Conditions such as "lr=0.1; valid/loss<0.3; run~^dig", with the types that columns have.

const SIGNS = {
  "!=": (a, b) => a !== b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "=": (a, b) => a === b,
  ">": (a, b) => a > b, "<": (a, b) => a < b, "~": (a, b) => b.test(String(a)),
};
const kindOf = (value) => ({ boolean: "true or false", number: "a number", string: "text" })[typeof value];

// The runs for which all conditions hold. A condition without a sign is words of any column.
function filtered(text) {
  return text.split(";").map((each) => each.trim()).filter(Boolean).reduce((some, condition) => {
    const parts = /^(.+?)\s*(!=|>=|<=|==|=|>|<|~)\s*(.*)$/.exec(condition);
    return some.filter(parts ? conditionOf(condition, ...parts.slice(1)) : wordsOf(condition));
  }, all());
}

function wordsOf(text) {
  const words = text.toLowerCase().split(/\s+/);
  return (run) => {
    const line = data.names.map((name) => cell(name, valueOf(run, name))).join(" ").toLowerCase();
    return words.every((word) => line.includes(word));
  };
}

function conditionOf(condition, name, told, text) {
  const column = columnOf(name);
  const sign = told === "==" ? "=" : told;
  if (text === "") return (run) => isMissing(valueOf(run, column)) === (sign === "=");
  if (sign === "~") {
    const pattern = new RegExp(text);
    return (run) => !isMissing(valueOf(run, column)) && pattern.test(String(valueOf(run, column)));
  }
  const known = data.columns[column].filter((value) => !isMissing(value));
  const wanted = wantedOf(known, sign, text);
  const kinds = new Set(known.map(kindOf));
  if (kinds.size && !kinds.has(kindOf(wanted))) {
    throw new Error(`${condition}: ${name} is ${[...kinds].join(" or ")} (such as ${known[0]}), `
      + `and ${text} is ${kindOf(wanted)}`);
  }
  return (run) => {
    const value = valueOf(run, column);
    if (isMissing(value) || kindOf(value) !== kindOf(wanted)) return sign === "!=";
    return SIGNS[sign](value, wanted);
  };
}

function wantedOf(known, sign, text) {
  const quoted = /^(['"])(.*)\1$/.exec(text);
  if (quoted) return quoted[2];
  if ((sign === "=" || sign === "!=") && known.length && known.every((value) => typeof value === "string")) {
    return text;  // as it is: run=002
  }
  if (/^(true|false)$/i.test(text)) return text.toLowerCase() === "true";
  return Number.isFinite(Number(text)) ? Number(text) : text;
}
