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
  $("pin-title").textContent = `Query ${i}: ${wordAt(i, "queries")}`;
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
  if (text.hidden) return;
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
    span.style.color = level > 170 && dark() ? "#111318" : ""; // light marks want dark letters
    if (span.style.color) span.style.background = css(level);
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

// What the patches of an image get: from the pinned query, or on average where none is pinned.
async function overlay(weights) {
  const canvas = $("picture"), site = manifest.sites[now.head.s], from = site.patches?.keys;
  canvas.hidden = $("picture-said").hidden = from === undefined || from === null;
  if (canvas.hidden) return;
  const received = now.margins[1]?.values.subarray(now.head.h * now.m, (now.head.h + 1) * now.m);
  const shown = weights || (now.pin === null ? received : null);
  const part = shown?.subarray(from, from + site.grid[0] * site.grid[1]);
  const chosen = now.pin === null ? null : patchOf(now.pin, site, "queries");
  const picture = await pictureOf();
  drawPatches(canvas, part, site.grid, picture, 320, chosen);
  const [low, high] = part ? rangeOf(part) : [];
  $("picture-said").textContent = !part ? "" : `${weights ? "Weight of the pinned query on" : "Mean weight received by"} each patch: `
    + `${said(low)} (${picture ? "veiled" : "dark"}) to ${said(high)} (${picture ? "clear" : "light"}). Click one to pin it.`;
}

function pinPatch(event) {
  const site = manifest.sites[now.head.s];
  if (site.patches?.queries === null) return;
  pin(site.patches.queries + patchUnder(event, $("picture"), site.grid));
}
