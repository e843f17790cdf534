// How the site's search orders its results: titles with the most words of the query first, how-to
// pages and guides before others, background last.
// Sphinx takes this in place of its own `Scorer`; the numbers below `score` are Sphinx's.
const stems = (text) =>
  splitQuery(text.toLowerCase())
    .filter((word) => !stopwords.has(word))
    .map((word) => new Stemmer().stemWord(word));
const guides = /^(averaging|blending|data|evaluation|preemption|record|report|runs|training)$/;
var Scorer = {
  score: ([page, title, , , score]) => {
    const asked = new Set(stems(new URLSearchParams(window.location.search).get("q")));
    score += 4 * new Set(stems(title).filter((word) => asked.has(word))).size;
    if (page.startsWith("howto/") || guides.test(page)) return score + 3;
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
