// Two runs: what changed in each head, and the two maps of one beside their difference.
async function loadCompare() {
  const other = manifest.compare;
  $("compare").hidden = !other;
  if (!other) return;
  $("overview").hidden = true;
  const [a, b, jsd] = await Promise.all([array("thumbs"), array("other/thumbs"), array("jsd")]);
  const title = document.createElement("h2");
  title.textContent = `A: ${other.names[0]} | B: ${other.names[1]}`;
  const words = document.createElement("p");
  words.className = "quiet";
  words.textContent = other.note;
  const list = document.createElement("select");
  const ranked = heads.filter((head) => jsd.values[head.s * wide + head.h] >= 0)
    .sort((x, y) => jsd.values[y.s * wide + y.h] - jsd.values[x.s * wide + x.h]);
  for (const head of ranked.slice(0, 300)) {
    const option = document.createElement("option");
    option.value = head.s * wide + head.h;
    option.textContent = `${nameOf(head)}: ${jsd.values[head.s * wide + head.h].toFixed(4)}`;
    list.append(option);
  }
  const label = document.createElement("label");
  label.append("heads by mean Jensen-Shannon distance ", list);
  const grid = document.createElement("canvas");
  const three = document.createElement("div");
  three.className = "three";
  const canvases = ["A", "B", "B - A"].map((name) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const canvas = document.createElement("canvas");
    caption.textContent = name;
    figure.append(caption, canvas);
    three.append(figure);
    return canvas;
  });
  $("compare").replaceChildren(title, words, grid, label, three);
  const cell = Math.max(14, Math.min(36, Math.floor(($("compare").clientWidth - 40) / wide)));
  const most = jsd.values.reduce((x, y) => Math.max(x, y), 1e-9);
  const context = fit(grid, wide * cell, manifest.sites.length * cell);
  for (const head of heads) {
    const change = jsd.values[head.s * wide + head.h];
    context.fillStyle = css(Math.round((255 * Math.max(0, change)) / most));
    context.fillRect(head.h * cell + 1, head.s * cell + 1, cell - 2, cell - 2);
  }
  grid.onclick = (event) => {
    const box = grid.getBoundingClientRect();
    const s = Math.floor((event.clientY - box.top) / cell), h = Math.floor((event.clientX - box.left) / cell);
    list.value = s * wide + h;
    show();
  };
  function show() {
    const key = Number(list.value), [, , t, s] = a.shape, size = 300;
    const parts = [a, b].map((x) => x.values.subarray(key * t * s, (key + 1) * t * s));
    parts.forEach((part, p) => fit(canvases[p], size, size).drawImage(bitmap(part, t, s), 0, 0, size, size));
    const last = fit(canvases[2], size, size), dx = size / s, dy = size / t;
    for (let i = 0; i < t * s; i++) {
      last.fillStyle = difference((parts[1][i] - parts[0][i]) / 128);
      last.fillRect((i % s) * dx, Math.floor(i / s) * dy, dx + 0.5, dy + 0.5);
    }
  }
  list.onchange = show;
  show();
}
