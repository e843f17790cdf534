// How the site's search orders its results: questions first, background last.
// Sphinx takes this in place of its own `Scorer`; the numbers below `score` are Sphinx's.
var Scorer = {
  score: ([page, , , , score]) => {
    if (page.startsWith("howto/")) return score + 3;
    if (/^(architecture|benchmarks|ecosystem|promises|reference\/messages)$/.test(page))
      return score - 6;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
