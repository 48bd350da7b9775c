// A pinned query with the keys it looks at most; a pinned key with the queries that look at it most.
const LISTED_TOPS = 12;

/** @param {number} i */
const rowWeights = (i) => (exactHead() ? exactTile(i, 0, 1, now.m) : null);
/** @param {number} j */
const columnWeights = (j) => (exactHead() ? exactTile(0, j, now.n, 1) : null);

// What a click on the map or on a word picks; with shift, the other.
/** @param {number} i @param {number} j @param {boolean} other */
const choose = (i, j, other) => (($("picks").value === "key") !== other ? pinKey(j) : pin(i));

/** @param {number | null} i @param {boolean} push */
async function pin(i, push = true) {
  now.pin = i;
  now.by = "query";
  await showPins(push);
}

/** @param {number | null} j @param {boolean} push */
async function pinKey(j, push = true) {
  now.key = j;
  now.by = "key";
  await showPins(push);
}

async function showPins(push = false) {
  const row = now.pin === null ? null : rowWeights(now.pin), column = now.key === null ? null : columnWeights(now.key);
  const site = manifest.sites[now.head.s];
  $("pin-title").textContent = now.pin !== null ? `Query ${now.pin}: ${clipped(wordAt(now.pin, "queries"), 40)}`
    : site.patches ? `Click a row of the map, or a ${patchKind()}: until then, what each ${patchKind()} received`
      : "Click a row of the map, or a token";
  listTops($("tops"), row, "keys", pinKey);
  $("key-title").hidden = $("key-tops").hidden = now.key === null;
  $("key-title").textContent = now.key === null ? "" : `Key ${now.key}: ${clipped(wordAt(now.key), 40)}, looked at by`;
  listTops($("key-tops"), column, "queries", pin);
  showChannels();
  showText();
  highlight();
  drawHeadView();
  note(push);
  await overlay(row, column);
}

// Of halves a weight can come out as 1.001, and a small one is no nought.
/** @param {number} x */
const shownWeight = (x) => (x < 5e-4 ? x.toExponential(0) : Math.min(1, x).toFixed(3));

/**
 * @param {HTMLElement} list @param {Float32Array | null} weights @param {"queries" | "keys"} side
 * @param {(place: number) => unknown} go
 */
function listTops(list, weights, side, go) {
  const items = [];
  if (weights) {
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, LISTED_TOPS);
    for (const x of order.filter((x) => weights[x] > 1e-4)) {
      const item = document.createElement("li"), word = document.createElement("button");
      word.type = "button";
      word.textContent = clipped(wordAt(x, side), 20);
      word.title = side === "keys" ? "Pin this key" : "Pin this query";
      word.onclick = () => go(x);
      item.append(word, ` at ${x}: ${shownWeight(weights[x])}`);
      items.push(item);
    }
  }
  list.replaceChildren(...items);
}

// What the patches of an image get: from the pinned query, or on average where none is pinned; where
// a key is pinned, how much each patch looks at it.
/** @param {Float32Array | null} row @param {Float32Array | null} column */
async function overlay(row, column) {
  const canvas = $("picture"), site = manifest.sites[now.head.s], places = site.patches;
  const looking = now.by === "key" && now.key !== null && places && places.queries !== null;
  const from = looking ? places.queries : places?.keys, weights = looking ? column : row;
  canvas.hidden = $("picture-said").hidden = from === undefined || from === null;
  if (canvas.hidden) return;
  const received = now.margins[1]?.values; // of patches every number is here
  const shown = weights || (now.pin === null && !looking ? received : null);
  const part = shown?.subarray(from, from + site.grid[0] * site.grid[1]);
  const byKey = now.by === "key" && now.key !== null;
  const chosen = byKey ? patchOf(now.key, site, "keys") : now.pin === null ? null : patchOf(now.pin, site, "queries");
  const picture = await pictureOf();
  const long = manifest.modality === "sound" ? Math.max(240, Math.min(720, $("side").clientWidth - 12)) : 320;
  drawPatches(canvas, part, site.grid, picture, long, chosen);
  const [low, high] = part ? rangeOf(part) : [];
  $("picture-said").textContent = !part ? "" : `${looking ? "Weight on the pinned key of" : weights ? "Weight of the pinned query on" : "Mean weight received by"} each ${patchKind()}: `
    + `${said(low)} (${picture ? "veiled" : "dark"}) to ${said(high)} (${picture ? "clear" : "light"}). Click one to pin it; with shift the other of query and key.`;
}

/** @param {MouseEvent} event */
function pinPatch(event) {
  const site = manifest.sites[now.head.s], { queries, keys } = site.patches;
  const p = patchUnder(event, $("picture"), site.grid), other = ($("picks").value === "key") !== event.shiftKey;
  if (queries === null || (other && keys !== null)) pinKey(keys + p);
  else pin(queries + p);
}
