// One query: the keys it looks at, in a list, in the text, and on the image.
const PAGE = 700; // tokens shown around the pinned one: the page stays light
let spans = new Map();

function rowWeights(i) {
  if (now.deep && now.deep.exact) return exactTile(i, 0, 1, now.m);
  return null;
}

async function pin(i) {
  now.pin = i;
  const weights = rowWeights(i);
  $("pin-title").textContent = `Query ${i}: ${wordAt(i)}`;
  const items = [];
  if (weights) {
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 12);
    for (const j of order.filter((j) => weights[j] > 1e-4)) {
      const item = document.createElement("li"), word = document.createElement("code");
      word.textContent = wordAt(j);
      item.append(word, ` at ${j}: ${weights[j].toFixed(3)}`);
      items.push(item);
    }
  }
  $("tops").replaceChildren(...items);
  showText();
  highlight(weights);
  drawMap();
  setHash();
  await overlay(weights);
}

function showText() {
  const text = $("text");
  spans = new Map();
  text.hidden = !manifest.tokens.length;
  if (text.hidden) return overlay(null);
  const start = now.pin === null ? 0 : Math.max(0, Math.min(now.pin - 550, now.n - PAGE));
  const found = [];
  if (start > 0) found.push(`… ${start} tokens before\n`);
  manifest.tokens.slice(start, start + PAGE).forEach((word, x) => {
    const span = document.createElement("span");
    span.textContent = word;
    span.dataset.i = start + x;
    spans.set(start + x, span);
    found.push(span);
  });
  text.replaceChildren(...found);
}

function highlight(weights) {
  for (const [j, span] of spans) {
    const level = weights && j < weights.length ? logByte(weights[j]) : 0;
    span.style.background = level > 100 ? `color-mix(in srgb, ${css(level)} 65%, transparent)` : "";
    span.style.outline = j === now.pin ? "2px solid var(--accent)" : "";
  }
  const text = $("text"), chosen = spans.get(now.pin);
  if (chosen) text.scrollTop = Math.max(0, chosen.offsetTop - text.clientHeight * 0.7);
}

function find(words) {
  const hits = [];
  manifest.tokens.forEach((word, i) => {
    if (words && word.includes(words)) hits.push(i);
  });
  for (const [j, span] of spans) span.style.textDecoration = hits.includes(j) ? "underline 2px" : "";
  $("note").textContent = words ? `${hits.length} tokens with “${words}”; Enter pins the next` : "";
  return hits;
}

async function overlay(weights) {
  const data = await array("image"), canvas = $("picture"), site = manifest.sites[now.head.s];
  canvas.hidden = !data || !site.grid;
  if (canvas.hidden) return;
  const [high, wideness] = data.shape, size = 320, scale = size / Math.max(high, wideness);
  const context = fit(canvas, wideness * scale, high * scale);
  const image = new ImageData(wideness, high);
  for (let p = 0; p < high * wideness; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = data.values[3 * p + c];
    image.data[4 * p + 3] = 255;
  }
  const plain = new OffscreenCanvas(wideness, high);
  plain.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(plain, 0, 0, wideness * scale, high * scale);
  if (!weights) return;
  const [rows, columns] = site.grid, special = site.special_tokens || 0;
  const highest = weights.subarray(special).reduce((a, x) => Math.max(a, x), 1e-9);
  const dx = (wideness * scale) / columns, dy = (high * scale) / rows;
  for (let p = 0; p < rows * columns; p++) {
    const share = weights[special + p] / highest;
    context.globalAlpha = 0.75 * Math.sqrt(share);
    context.fillStyle = css(Math.round(255 * share));
    context.fillRect((p % columns) * dx, Math.floor(p / columns) * dy, dx, dy);
  }
  context.globalAlpha = 1;
  const at = now.pin - special;
  if (at >= 0) {
    context.strokeStyle = "#ffffff";
    context.lineWidth = 2;
    context.strokeRect((at % columns) * dx, Math.floor(at / columns) * dy, dx, dy);
  }
}
