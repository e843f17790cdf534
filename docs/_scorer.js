// How the site's search finds and orders its results. Sphinx takes this in place of its own
// `Scorer`; the numbers below `score` are Sphinx's.
const stems = (text) =>
  splitQuery(text.toLowerCase())
    .filter((word) => !stopwords.has(word))
    .map((word) => new Stemmer().stemWord(word));
const guides = /^(averaging|blending|data|evaluation|preemption|record|report|runs|tracker|training)$/;
var Scorer = {
  // How-to pages and guides first, background last.
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
// Sphinx finds only the pages that have all words of the query. Here, a third of them is enough. A
// word counts more if fewer pages have it, and more in a title than in the text.
queueMicrotask(() => {
  const search = Search.performTermsSearch;
  Search.performTermsSearch = (words, excluded) => {
    const pages = new Map();
    let total = 0;
    for (const word of words) {
      const found = search(new Set([word]), excluded);
      if (found.length === 0) continue;
      const weight = Math.log(1 + Search._index.docnames.length / found.length);
      total += weight;
      for (const item of found) {
        const page = pages.get(item[0]) ?? { item, weight: 0, score: 0 };
        page.weight += weight;
        page.score += weight * item[4];
        pages.set(item[0], page);
      }
    }
    return [...pages.values()]
      .filter((page) => page.weight >= total / 3)
      .map(({ item, score }) => [...item.slice(0, 4), (2 * score) / total, ...item.slice(5)]);
  };
});
