// One head: a map of the largest weight of each tile, and exact weights where one looks closely.
const now = { head: null, deep: null, pin: null, box: null, side: 560, exactMs: 0 };
const EXACT = 256; // a view of at most so many queries and keys is computed weight by weight

async function openHead(head) {
  now.head = head;
  now.pin = null;
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
  now.margins = [await array("entropy/" + head.s), await array("received/" + head.s)];
  now.box = { i: 0, j: 0, n: now.n, m: now.m };
  $("head-name").textContent = nameOf(head);
  const all = scoreNames.filter((name) => valueOf(name, head) === valueOf(name, head))
    .map((name) => `${manifest.scores[name].title} ${said(valueOf(name, head))}`);
  $("head-scores").textContent = all.join(" · ");
  $("note").textContent = now.deep ? (now.deep.exact ? "" : "This rule is drawn from its tiles alone.")
    : "A small map only: see it with --heads " + `${site.layer},${head.h}` + " to keep every weight.";
  $("hide-sink").disabled = !(now.deep && now.deep.exact);
  $("pin-title").textContent = site.patches ? "Click a row of the map, or a patch: until then, what each patch received"
    : "Click a row of the map, or a token";
  $("tops").replaceChildren();
  showText();
  drawMap();
  await overlay(null);
}

function weight(i, j) {
  const d = now.deep, size = d.q.shape[1];
  if (d.causal && j > i + d.offset) return 0;
  let dot = 0;
  for (let c = 0, a = i * size, b = j * size; c < size; c++) dot += d.q.values[a + c] * d.k.values[b + c];
  let score = dot * d.scale;
  if (d.softcap) score = d.softcap * Math.tanh(score / d.softcap);
  return Math.exp(score - d.lse.values[i]);
}

// Weights of some queries and keys, the first key hidden and the rest shared out again if asked.
function exactTile(i0, j0, n, m) {
  const hide = $("hide-sink").checked, out = new Float32Array(n * m);
  for (let i = 0; i < n; i++) {
    const left = hide ? 1 - weight(i0 + i, 0) : 1;
    for (let j = 0; j < m; j++) {
      const w = hide && j0 + j === 0 ? 0 : weight(i0 + i, j0 + j);
      out[i * m + j] = left > 1e-9 ? w / left : 0;
    }
  }
  return out;
}

function pooled() {
  if (now.deep) return { bytes: now.deep.map.values, rows: now.deep.map.shape[0],
    columns: now.deep.map.shape[1], tile: now.deep.tile };
  if (!thumbs) return null;
  const [, , t, s] = thumbs.shape, key = now.head.s * wide + now.head.h;
  const tile = Math.max(1, Math.ceil(Math.max(now.n, now.m) / Math.max(t, s)));
  return { bytes: thumbs.values.subarray(key * t * s, (key + 1) * t * s), rows: t, columns: s, tile };
}

function drawMap() {
  const box = now.box;
  now.side = Math.max(240, Math.min(560, $("head").clientWidth - 60));
  const high = now.side, wideness = now.side;
  const context = fit($("map"), wideness, high);
  context.fillStyle = css(0);
  context.fillRect(0, 0, wideness, high);
  const close = now.deep && now.deep.exact && box.n <= EXACT && box.m <= EXACT;
  const began = performance.now();
  if (close) {
    const tile = exactTile(box.i, box.j, box.n, box.m);
    const bytes = Uint8Array.from(tile, logByte);
    now.exactMs = performance.now() - began;
    context.drawImage(bitmap(bytes, box.n, box.m), 0, 0, wideness, high);
  } else {
    const map = pooled();
    if (map) {
      const image = bitmap(map.bytes, map.rows, map.columns);
      context.drawImage(image, box.j / map.tile, box.i / map.tile, box.m / map.tile,
        box.n / map.tile, 0, 0, wideness, high);
    }
  }
  now.close = close;
  const per = pooled()?.tile;
  $("shown").textContent = close ? "every weight, exact" : per === 1 ? "every weight"
    : per ? `the largest of each ${per} x ${per} tile` + (now.deep?.exact ? `; exact from ${EXACT} tokens on` : "") : "";
  $("ramp").style.background = rampCss();
  if ($("hide-sink").checked) {
    $("note").textContent = close ? "The first token is hidden; each row is shared out again to 1."
      : "The first token is hidden where weights are exact: zoom in to 256 tokens.";
  }
  if (now.pin !== null) {
    const y = ((now.pin + 0.5 - box.i) / box.n) * high;
    context.strokeStyle = "#ffffffaa";
    context.strokeRect(-1, y - Math.max(2, high / box.n / 2), wideness + 2, Math.max(4, high / box.n));
  }
  const got = drawMargin($("received"), now.margins[1], now.head.h, box.j, box.m, true);
  const spread = drawMargin($("entropy"), now.margins[0], now.head.h, box.i, box.n, false);
  $("margin-said").textContent = got === undefined ? "" : `above: mean weight each key received, up to ${said(got)}; `
    + `at the side: entropy of each query, up to ${said(spread)} nats`;
}

// A margin: how much each key received (on top), how spread each query is (at the side).
function drawMargin(canvas, data, row, from, count, flat) {
  const thick = 36, long = now.side;
  const context = flat ? fit(canvas, long, thick) : fit(canvas, thick, long);
  if (!data) return;
  const all = data.values.subarray(row * data.shape[1], (row + 1) * data.shape[1]);
  const part = all.subarray(from, from + count);
  const bins = Math.min(part.length, long), tops = new Float32Array(bins);
  part.forEach((x, i) => {
    const bin = Math.floor((i * bins) / part.length);
    tops[bin] = Math.max(tops[bin], x);
  });
  const highest = tops.reduce((a, x) => Math.max(a, x), 1e-9);
  context.fillStyle = ink("--accent");
  tops.forEach((x, b) => {
    const at = (b * long) / bins, size = (x / highest) * thick, step = Math.max(1, long / bins);
    if (flat) context.fillRect(at, thick - size, step, size);
    else context.fillRect(0, at, size, step);
  });
  return highest;
}

const wordAt = (i, side = "keys") => {
  const site = manifest.sites[now.head.s], p = patchOf(i, site, side);
  if (p >= 0) return `patch (${Math.floor(p / site.grid[1])}, ${p % site.grid[1]})`;
  if (site.patches) return site.kind === "self" ? "[special]" : "text";
  const word = manifest.tokens[i];
  return word === undefined ? "#" + i : JSON.stringify(word).slice(1, -1).replaceAll(" ", "␣");
};

function placeOf(event) {
  const box = $("map").getBoundingClientRect(), b = now.box;
  const i = Math.floor(b.i + ((event.clientY - box.top) / box.height) * b.n);
  const j = Math.floor(b.j + ((event.clientX - box.left) / box.width) * b.m);
  return [Math.max(0, Math.min(now.n - 1, i)), Math.max(0, Math.min(now.m - 1, j))];
}

function zoom(factor, i, j) {
  const b = now.box;
  const n = Math.max(8, Math.min(now.n, Math.round(b.n * factor)));
  const m = Math.max(8, Math.min(now.m, Math.round(b.m * factor)));
  const share = (x, from, size) => (x - from) / size;
  const clamp = (x, most) => Math.max(0, Math.min(most, Math.round(x)));
  now.box = { n, m, i: clamp(i - share(i, b.i, b.n) * n, now.n - n),
    j: clamp(j - share(j, b.j, b.m) * m, now.m - m) };
  drawMap();
}

function pan(di, dj) {
  const b = now.box;
  b.i = Math.max(0, Math.min(now.n - b.n, Math.round(b.i + di)));
  b.j = Math.max(0, Math.min(now.m - b.m, Math.round(b.j + dj)));
  drawMap();
}

function readout(event) {
  const [i, j] = placeOf(event);
  let words = `query ${i} ${wordAt(i, "queries")} → key ${j} ${wordAt(j)}`;
  if (now.deep && now.deep.exact) words += `: ${exactTile(i, j, 1, 1)[0].toPrecision(3)}`;
  $("readout").textContent = words;
}
