// The text that was read: what the pinned token looks at, a search over words, a map of the whole.
const PAGE = 700; // tokens shown around the pinned one: the page stays light
/** @type {Map<number, HTMLElement>} */
let spans = new Map();
/** @type {{ start: number, at: number | null, hits: number[][], levels: Uint8Array | null }} */
const reading = { start: 0, at: null, hits: [], levels: null };

// Words as they read, whatever pieces they are made of: lowered tokens, and where each begins.
const lowered = manifest.tokens.map((x) => x.toLowerCase());
const begins = new Uint32Array(lowered.length + 1);
lowered.forEach((x, i) => { begins[i + 1] = begins[i] + x.length; });
const wholeText = lowered.join("");

/** @param {number} offset */
function tokenAt(offset) {
  let [low, high] = [0, lowered.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (begins[middle] <= offset) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Where words stand: the first and the last token of each place.
/** @param {string} words */
function search(words) {
  const wanted = words.toLowerCase(), found = [];
  for (let at = wanted ? wholeText.indexOf(wanted) : -1; at >= 0; at = wholeText.indexOf(wanted, at + 1)) {
    // A token that only lends its space is no part of the words.
    const ahead = wanted.length - wanted.trimStart().length;
    found.push([tokenAt(at + ahead), tokenAt(at + wanted.length - 1)]);
  }
  return found;
}

/** @param {Site} site */
const showsText = (site) => manifest.tokens.length > 0 && (!site.patches || site.patches.words);

function showText() {
  const text = $("text"), site = manifest.sites[now.head.s];
  spans = new Map();
  text.hidden = $("minimap").hidden = !showsText(site);
  if (text.hidden) return;
  const middle = reading.at ?? (now.by === "key" ? now.key : now.pin);
  const start = middle === null ? 0 : Math.max(0, Math.min(middle - 550, now.n - PAGE));
  reading.start = start;
  /** @type {(string | HTMLElement)[]} */
  const found = [];
  if (start > 0) found.push(`… ${start} tokens before\n`);
  let patches = 0;
  manifest.tokens.slice(start, start + PAGE).forEach((word, x) => {
    if (site.patches?.words && patchOf(start + x, site, site.keys === manifest.tokens.length ? "keys" : "queries") >= 0) {
      if (!patches++) found.push(" [the image] "); // its patches are in the picture
      return;
    }
    const span = document.createElement("span");
    span.textContent = word;
    span.dataset.i = String(start + x);
    spans.set(start + x, span);
    found.push(span);
  });
  text.replaceChildren(...found);
}

// Marks of weights grow stronger with the weight on any paper; a ramp that ends in light would have
// the largest ones vanish on white.
const FAINT = 100;
const markColor = () => (roleOf(now.head) >= 0 ? roleColor(roleOf(now.head)) : ink("--accent"));
/** @param {number} level */
const markOf = (level) => (level - FAINT + 20) / (255 - FAINT + 20);

// Weights of the token pinned last, in the text and on the map of the whole.
function highlight() {
  const byKey = now.by === "key", picked = byKey ? now.key : now.pin, site = manifest.sites[now.head.s];
  // Weights are those of the other side: of a query its keys, of a key its queries.
  const [of, on] = byKey ? [readsText(site, "keys"), readsText(site, "queries")]
    : [readsText(site, "queries"), readsText(site, "keys")];
  const chosen = of ? picked : null;
  const weights = picked === null || !on ? null : byKey ? columnWeights(picked) : rowWeights(picked);
  reading.levels = weights && Uint8Array.from(weights, logByte);
  for (const [j, span] of spans) {
    const level = reading.levels && j < reading.levels.length ? reading.levels[j] : 0;
    span.style.background = level > FAINT ? `color-mix(in srgb, ${markColor()} ${(60 * markOf(level)).toFixed(1)}%, transparent)` : "";
    span.style.outline = j === chosen ? "2px solid var(--accent)" : "";
    span.style.textDecoration = reading.hits.some(([a, b]) => a <= j && j <= b) ? "underline 2px" : "";
  }
  const text = $("text"), span = spans.get(reading.at ?? chosen);
  if (span) text.scrollTop = Math.max(0, span.offsetTop - text.clientHeight * 0.7);
  drawMinimap();
}

// The whole text from top to bottom: weights in their colors, places found at the right, and a frame
// around what is on the page.
function drawMinimap() {
  const canvas = $("minimap"), many = manifest.tokens.length;
  if (canvas.hidden) return;
  const high = Math.max(80, $("text").clientHeight), width = 26, context = fit(canvas, width, high);
  const bins = new Uint8Array(high), at = (i) => Math.min(high - 1, Math.floor((i * high) / many));
  reading.levels?.forEach((level, i) => { bins[at(i)] = Math.max(bins[at(i)], level); });
  const mark = markColor();
  bins.forEach((level, y) => {
    context.fillStyle = level > FAINT ? `color-mix(in srgb, ${mark} ${(100 * markOf(level)).toFixed(1)}%, ${ink("--line")})` : ink("--line");
    context.fillRect(0, y, 16, 1);
  });
  context.fillStyle = ink("--accent");
  for (const [a] of reading.hits) context.fillRect(18, at(a), 8, 2);
  context.strokeStyle = ink("--ink");
  context.strokeRect(0.5, at(reading.start) + 0.5, 16, Math.max(3, at(Math.min(many, reading.start + PAGE)) - at(reading.start)));
}

/** @param {string} words */
function find(words) {
  reading.hits = search(words);
  for (const [j, span] of spans) span.style.textDecoration = reading.hits.some(([a, b]) => a <= j && j <= b) ? "underline 2px" : "";
  $("hits").textContent = words ? `${reading.hits.length} × “${words}”; Enter pins the next` : "";
  drawMinimap();
  note();
  return reading.hits;
}

/** @param {number} step */
function nextFound(step) {
  const { hits } = reading, from = now.pin ?? -1;
  if (!hits.length) return;
  const next = step > 0 ? hits.find(([, b]) => b > from) ?? hits[0] : hits.findLast(([, b]) => b < from) ?? hits.at(-1);
  reading.at = null;
  pin(next[1]);
}

function watchText() {
  $("text").onclick = (event) => {
    const i = Number(/** @type {HTMLElement} */ (event.target).dataset.i ?? NaN);
    reading.at = null;
    if (i >= 0) choose(i, i, event.shiftKey);
  };
  $("minimap").onclick = (event) => {
    const box = $("minimap").getBoundingClientRect();
    reading.at = Math.floor(((event.clientY - box.top) / box.height) * manifest.tokens.length);
    showText();
    highlight();
  };
  $("find").oninput = () => find($("find").value);
  $("find").onkeydown = (event) => {
    if (event.key === "Enter") nextFound(event.shiftKey ? -1 : 1);
  };
}
