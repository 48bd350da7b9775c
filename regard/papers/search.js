// Search over the table above, in the reader's browser: what `regard.papers.index` does, without
// the sentence encoder. Words, spellings and related words are in the page; no request is sent.
const papersSearch = (() => {
  const worthOf = { name: 1, title: 2, family: 1, what: 1, asked: 0.5 };
  const saturation = 1.2, length = 0.75, ofTitle = 100, share = 0.65;
  const endings = ["ations", "ation", "ings", "ions", "ing", "ion", "ers", "er", "ed", "es", "s", "e"];
  const stem = (word) => {
    const end = endings.find((one) => word.endsWith(one) && word.length - one.length >= 4);
    return end ? word.slice(0, -end.length) : word;
  };

  // `given`: same [[name, pattern]], stop "a b", related and asked (the texts of the tables).
  const prepare = (given, rows) => {
    const same = given.same.map(([name, of]) => [name, new RegExp(`(?<![\\w-])(?:${of})(?![\\w])`, "g")]);
    const stop = new Set(given.stop.split(" "));
    const [first, ...lines] = given.related.trimEnd().split("\n");
    const stems = first.split(" ");
    const related = new Map(lines.map((line) => {
      const at = line.indexOf(" ");
      return [line.slice(0, at), line.slice(at + 1)];
    }));
    const plain = (text) => same.reduce((x, [name, of]) => x.replace(of, name), text.toLowerCase());
    const words = (text) => plain(text).match(/[a-z0-9]+/g) || [];
    const says = (word) => word.length > 1 || /^\d$/.test(word);
    const terms = (text) => {
      const all = words(text), kept = all.filter((word) => !stop.has(word) && says(word));
      return [...new Set(kept.length ? kept : all)];
    };
    const near = (word) => {
      const found = new Map((related.get(word) || "").split(" ").filter(Boolean).map((one) =>
        [stems[parseInt(one.slice(0, -1), 36)], share * Number(one.slice(-1)) / 10]));
      return found.set(stem(word), 1);
    };
    const asked = new Map(given.asked.trimEnd().split("\n").map((line) => {
      const at = line.indexOf(": ");
      return [line.slice(0, at), line.slice(at + 2)];
    }));
    const textOf = (row, part) => part === "name" ? row.key.replaceAll("_", " ")
      : part === "asked" ? asked.get(row.key) || "" : row[part];
    const counts = rows.map((row) => {
      const held = new Map();
      for (const part of Object.keys(worthOf)) {
        for (const word of words(textOf(row, part))) {
          if (stop.has(word) || !says(word)) continue;
          held.set(stem(word), (held.get(stem(word)) || 0) + worthOf[part]);
        }
      }
      return held;
    });
    const sizes = counts.map((held) => [...held.values()].reduce((a, b) => a + b, 0));
    const mean = sizes.reduce((a, b) => a + b, 0) / sizes.length;
    const holders = new Map();
    counts.forEach((held) => held.forEach((_, one) => holders.set(one, (holders.get(one) || 0) + 1)));
    const worth = new Map();
    counts.forEach((held, i) => held.forEach((many, one) => {
      const rare = Math.log(1 + (rows.length - holders.get(one) + 0.5) / (holders.get(one) + 0.5));
      const back = saturation * (1 - length + length * sizes[i] / mean);
      if (!worth.has(one)) worth.set(one, new Map());
      worth.get(one).set(i, rare * many * (1 + saturation) / (many + back));
    }));
    const titles = rows.map((row) => words(row.title).join(" "));

    // Rows [index, score] that answer a question, best first.
    return (question) => {
      const scores = new Map(), met = new Map();
      let asked = 0;
      for (const word of terms(question)) {
        const known = [...near(word)].filter(([one]) => worth.has(one));
        asked += known.length > 0;
        const best = new Map();
        for (const [one, by] of known) {
          worth.get(one).forEach((value, i) => {
            const [had, ofIt] = best.get(i) || [0, 0];
            if (by * value > had || (by * value === had && by > ofIt)) best.set(i, [by * value, by]);
          });
        }
        best.forEach(([value, by], i) => {
          scores.set(i, (scores.get(i) || 0) + value);
          met.set(i, (met.get(i) || 0) + by);
        });
      }
      const phrase = words(question).join(" ");
      return rows.map((row, i) => {
        const answered = scores.has(i) ? scores.get(i) * Math.sqrt(met.get(i) / asked) : 0;
        return [i, answered + (phrase.length > 1 && phrase === titles[i] ? ofTitle : 0)];
      }).filter(([, score]) => score > 0)
        .sort(([a, x], [b, y]) => y - x || (rows[a].key < rows[b].key ? -1 : 1));
    };
  };
  return { prepare };
})();

if (typeof document !== "undefined") {
  (() => {
    const box = document.getElementById("papers-search");
    const count = document.getElementById("papers-count");
    const given = document.getElementById("papers-words");
    const table = [...document.querySelectorAll("table")].find((t) => t.rows.length > 100);
    if (!box || !given || !table) return;
    const body = table.tBodies[0], shown = [...body.rows];
    const rows = shown.map((row) => {
      const [first, second] = row.cells, link = first.querySelector("a");
      const about = first.textContent.slice(link.textContent.length).split(" · ");
      return {
        key: link.getAttribute("href").split("/").filter(Boolean).pop().replace(/\.(md|html)$/, ""),
        title: link.textContent, family: about[2] || "", what: second.textContent,
      };
    });
    let find = null;
    const show = () => {
      find = find || papersSearch.prepare(JSON.parse(given.textContent), rows);
      const asked = box.value.trim() !== "";
      const found = asked ? find(box.value) : rows.map((_, i) => [i, 0]);
      const seen = new Set(found.map(([i]) => i));
      shown.forEach((row, i) => { row.hidden = !seen.has(i); });
      found.forEach(([i]) => body.appendChild(shown[i]));
      count.textContent = asked ? `${found.length} of ${rows.length} papers, best first` : "";
    };
    box.hidden = false;
    box.addEventListener("input", show);
  })();
}
if (typeof module !== "undefined") module.exports = papersSearch;
