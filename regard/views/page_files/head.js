// One head: its tiles, and exact weights from queries, keys and log-sum-exp.
/** @type {Now} */
const now = { head: null, deep: null, pin: null, key: null, by: "query", box: null, side: 560, exactMs: 0,
  form: "matrix", scale: "adaptive", rows: false, hide: false, bare: null };
const EXACT = 256; // a view of at most so many queries and keys is computed weight by weight
const SENTENCE = 32; // texts of so many tokens are shown as words with lines between them
const NAMED = 64; // a view of so many tokens names them on both axes

/** @param {Head} head */
async function openHead(head) {
  now.head = head;
  now.pin = now.key = now.bare = null;
  now.left = new Map();
  const index = manifest.deep.findIndex((d) => d.site === head.s && d.head === head.h);
  const site = manifest.sites[head.s];
  now.n = site.queries || 1;
  now.m = site.keys || 1;
  now.deep = null;
  if (index >= 0) {
    const d = manifest.deep[index];
    const [q, k, lse, map] = await Promise.all([array("q/" + index),
      array(`k/${d.site}.${d.kv_head}`), array("lse/" + index), array("map/" + index)]);
    now.deep = { ...d, q, k, lse, map };
  }
  now.margins = [await marginOf("entropy", head), await marginOf("received", head)];
  now.box = { i: 0, j: 0, n: now.n, m: now.m };
  now.form = now.deep?.exact && now.n <= SENTENCE && now.m <= SENTENCE && !site.patches ? "lines" : "matrix";
}

// Numbers along an axis: of each token, or where a page has no more the largest of `each` tokens.
/** @param {string} kind @param {Head} head @returns {Promise<Margin | null>} */
async function marginOf(kind, head) {
  const own = await array(`${kind}/${head.s}.${head.h}`), all = own || await array(`${kind}/${head.s}`);
  if (!all) return null;
  const many = all.shape.at(-1), from = own ? 0 : head.h * many;
  return { values: all.values.subarray(from, from + many), each: all.each };
}

const exactHead = () => Boolean(now.deep && now.deep.exact);
const isWhole = () => now.box.n === now.n && now.box.m === now.m;

/** @param {number} i @param {number} j */
const weight = (i, j) => weightsOf(i, j, 1)[0];

// Weights of one query on some keys in a row. Four sums at a time: a processor adds them side by side.
/** @param {number} i @param {number} from @param {number} count */
function weightsOf(i, from, count) {
  const { q, k, lse, scale, softcap, causal, offset } = now.deep, size = q.shape[1], out = new Float32Array(count);
  const many = causal ? Math.min(count, i + offset + 1 - from) : count, base = lse.values[i], whole = size - (size % 4);
  const query = Float64Array.from(q.values.subarray(i * size, (i + 1) * size)), keys = k.values;
  for (let x = 0, b = from * size; x < many; x++, b += size) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let c = 0; c < whole; c += 4) {
      s0 += query[c] * keys[b + c];
      s1 += query[c + 1] * keys[b + c + 1];
      s2 += query[c + 2] * keys[b + c + 2];
      s3 += query[c + 3] * keys[b + c + 3];
    }
    for (let c = whole; c < size; c++) s0 += query[c] * keys[b + c];
    let score = (s0 + s1 + s2 + s3) * scale;
    if (softcap) score = softcap * Math.tanh(score / softcap);
    out[x] = Math.exp(score - base);
  }
  return out;
}

// What a query has left when the first key is hidden. Where that is little, it is the sum of the
// others: half-precision queries and keys say 1 - w too roughly for that.
/** @param {number} i */
function leftOf(i) {
  const first = weight(i, 0);
  if (first < 0.9) return 1 - first;
  if (!now.left.has(i)) {
    now.left.set(i, weightsOf(i, 1, now.m - 1).reduce((sum, x) => sum + x, 0));
  }
  return now.left.get(i);
}

// Weights of some queries and keys, the first key hidden and the rest shared out again if asked.
/** @param {number} i0 @param {number} j0 @param {number} n @param {number} m */
function exactTile(i0, j0, n, m) {
  const hide = now.hide, out = new Float32Array(n * m);
  for (let i = 0; i < n; i++) {
    const left = hide ? leftOf(i0 + i) : 1, row = weightsOf(i0 + i, j0, m);
    if (hide && j0 === 0) row[0] = 0;
    if (left !== 1) for (let j = 0; j < m; j++) row[j] = left > 1e-9 ? row[j] / left : 0;
    out.set(row, i * m);
  }
  return out;
}

// The largest weight of each tile: of a head kept in full finely, of any other as its small map.
/** @returns {Tiles | null} */
function pooled() {
  const found = now.deep ? { bytes: now.deep.map.values, rows: now.deep.map.shape[0],
    columns: now.deep.map.shape[1], tile: now.deep.tile } : smallMap(now.head);
  if (!found || !now.hide) return found;
  now.bare ??= withoutFirst(found);
  return { ...found, bytes: now.bare };
}

/** @param {Head} head @returns {Tiles | null} */
function smallMap(head) {
  if (!thumbs) return null;
  const [, , t, s] = thumbs.shape, key = head.s * wide + head.h, site = manifest.sites[head.s];
  const tile = site.tile || Math.max(1, Math.ceil(Math.max(site.queries || 1, site.keys || 1) / Math.max(t, s)));
  const [rows, columns] = [Math.min(t, Math.ceil((site.queries || 1) / tile)), Math.min(s, Math.ceil((site.keys || 1) / tile))];
  const all = thumbs.values.subarray(key * t * s, (key + 1) * t * s);
  if (rows === t && columns === s) return { bytes: all, rows, columns, tile };
  // Sites of different lengths share one array, each in its corner.
  const bytes = new Uint8Array(rows * columns);
  for (let r = 0; r < rows; r++) bytes.set(all.subarray(r * s, r * s + columns), r * columns);
  return { bytes, rows, columns, tile };
}

// Tiles without the first key: its column of tiles is computed again from the other keys; where
// weights cannot be, the whole column goes.
/** @param {Tiles} tiles */
function withoutFirst({ bytes, rows, columns, tile }) {
  const out = Uint8Array.from(bytes), last = Math.min(tile, now.m);
  for (let r = 0; r < rows; r++) {
    let most = 0;
    for (let i = r * tile; exactHead() && i < Math.min(now.n, (r + 1) * tile); i++) {
      for (const x of weightsOf(i, 1, last - 1)) most = Math.max(most, x);
    }
    out[r * columns] = most ? logByte(most) : 0;
  }
  return out;
}

// What the box shows, as bytes of the log scale with the way they are drawn: one code for the matrix
// and for the lines between words.
/** @returns {Shown | null} */
function boxNow() {
  const { box } = now, close = exactHead() && box.n <= EXACT && box.m <= EXACT;
  /** @type {any} */
  let part;
  if (close) {
    const began = performance.now(), tile = exactTile(box.i, box.j, box.n, box.m);
    part = { bytes: Uint8Array.from(tile, logByte), rows: box.n, columns: box.m, tile: 1, i: box.i, j: box.j, weights: tile };
    now.exactMs = performance.now() - began;
  } else {
    part = pooled();
    if (!part) return null;
    part = { ...part, i: 0, j: 0, weights: null };
  }
  now.close = close;
  if (now.rows) part.bytes = normalised(part.bytes, part.rows, part.columns);
  return { ...part, close, ...levels(now.scale, part.bytes) };
}

/** @param {number} i @param {"queries" | "keys"} side */
const wordAt = (i, side = "keys") => {
  const site = manifest.sites[now.head.s], p = patchOf(i, site, side);
  if (p >= 0) return patchName(site, p);
  if (site.patches && !site.patches.words) return site.kind === "self" ? "[special]" : "text";
  const word = manifest.tokens[i];
  return word === undefined ? "#" + i : JSON.stringify(word).slice(1, -1).replaceAll(" ", "␣").replace(/␣{4,}/g, (x) => "␣×" + x.length);
};

// Heads of the same role, the best first; of a head without one, those without.
/** @param {Head} head */
function alike(head) {
  const role = roleOf(head), name = manifest.roles[role]?.name;
  const some = heads.filter((x) => roleOf(x) === role);
  return role < 0 ? some : some.sort((a, b) => (valueOf(name, b) || 0) - (valueOf(name, a) || 0));
}

/** @param {number} step */
function neighbour(step) {
  const some = alike(now.head), at = some.findIndex((x) => x.s === now.head.s && x.h === now.head.h);
  return some[(at + step + some.length) % some.length];
}
