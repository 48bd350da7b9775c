// Search over the table above, in the reader's browser: bm25 over its words, no request sent.
(() => {
  const box = document.getElementById("papers-search");
  const count = document.getElementById("papers-count");
  const table = [...document.querySelectorAll("table")].find((t) => t.rows.length > 100);
  if (!box || !table) return;
  const body = table.tBodies[0];
  const stem = (word) => word.length < 5 ? word
    : word.replace(/(ations?|ings?|ions?|ers?|ed|es|s|e)$/, (end, _, at) => at < 4 ? end : "");
  const words = (text) => (text.toLowerCase()
    .replace(/\bkeys?(?:[-/ ]| and )values?\b/g, "kv")
    .match(/[a-z0-9]+/g) || []).map(stem);
  // Title, kind, family and state stand in the first column, the description in the second.
  const weights = [4, 3];
  const rows = [...body.rows].map((row) => {
    const held = new Map();
    [...row.cells].forEach((cell, i) => words(cell.textContent).forEach((word) =>
      held.set(word, (held.get(word) || 0) + weights[i])));
    return { row, held, size: [...held.values()].reduce((a, b) => a + b, 0) };
  });
  const mean = rows.reduce((sum, r) => sum + r.size, 0) / rows.length;
  const spread = new Map();
  rows.forEach((r) => r.held.forEach((_, word) => spread.set(word, (spread.get(word) || 0) + 1)));
  const score = (r, wanted) => {
    let sum = 0, met = 0;
    for (const word of wanted) {
      const times = r.held.get(word);
      if (!times) continue;
      met += 1;
      const rare = Math.log(1 + (rows.length - spread.get(word) + 0.5) / (spread.get(word) + 0.5));
      sum += rare * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * r.size / mean));
    }
    return sum * Math.sqrt(met / wanted.length);
  };
  const show = () => {
    const wanted = [...new Set(words(box.value))].filter((word) => spread.has(word));
    const asked = box.value.trim() !== "";
    const found = rows.map((r, i) => ({ r, i, s: wanted.length ? score(r, wanted) : 0 }));
    found.sort((a, b) => b.s - a.s || a.i - b.i);
    found.forEach(({ r, s }) => { r.row.hidden = asked && s === 0; body.appendChild(r.row); });
    const seen = found.filter(({ s }) => s > 0).length;
    count.textContent = asked ? `${seen} of ${rows.length} papers, best first` : "";
  };
  box.hidden = false;
  box.addEventListener("input", show);
})();
