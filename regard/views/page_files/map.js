// The map of a head: queries down, keys across, with margins and, from 64 tokens down, with words.
function drawHeadView() {
  const lines = now.form === "lines";
  $("map-grid").hidden = lines;
  $("lines").hidden = !lines;
  const shown = boxNow();
  if (lines) drawLines(shown);
  else drawMap(shown);
  sayScale(shown);
}

/** @param {Shown | null} shown */
function drawMap(shown) {
  const { box } = now, named = box.n <= NAMED && box.m <= NAMED && manifest.tokens.length > 0;
  const room = $("head").clientWidth - 60;
  const left = named ? Math.min(110, Math.floor(room * 0.2)) : 0;
  now.side = Math.max(200, Math.min(560, 600 - left, room - left));
  const side = now.side, context = fit($("map"), side, side);
  context.fillStyle = css(0);
  context.fillRect(0, 0, side, side);
  if (shown) {
    const by = Math.ceil(Math.max(box.n, box.m) / shown.tile / (side * (devicePixelRatio || 1)));
    const map = coarser(shown, by), tile = shown.tile * Math.max(1, by);
    const image = bitmap(map.bytes.map((x) => shown.lut[x]), map.rows, map.columns);
    context.drawImage(image, (box.j - shown.j) / tile, (box.i - shown.i) / tile, box.m / tile, box.n / tile, 0, 0, side, side);
  }
  context.strokeStyle = "#ffffffaa";
  if (now.pin !== null) {
    const y = ((now.pin + 0.5 - box.i) / box.n) * side;
    context.strokeRect(-1, y - Math.max(2, side / box.n / 2), side + 2, Math.max(4, side / box.n));
  }
  if (now.key !== null) {
    const x = ((now.key + 0.5 - box.j) / box.m) * side;
    context.strokeRect(x - Math.max(2, side / box.m / 2), -1, Math.max(4, side / box.m), side + 2);
  }
  drawNames($("query-names"), named, left, box.i, box.n, "queries");
  drawNames($("key-names"), named, left, box.j, box.m, "keys");
  now.received = drawMargin($("received"), now.margins[1], box.j, box.m, true);
  now.spread = drawMargin($("entropy"), now.margins[0], box.i, box.n, false);
}

// Words along an axis; where there is no room for each, every other one.
/**
 * @param {HTMLCanvasElement} canvas @param {boolean} named @param {number} room
 * @param {number} from @param {number} count @param {"queries" | "keys"} side
 */
function drawNames(canvas, named, room, from, count, side) {
  canvas.hidden = !named;
  canvas.dataset.named = "";
  if (!named) return;
  const down = side === "queries", cell = now.side / count, every = Math.ceil(9 / cell);
  const size = Math.max(8, Math.min(12, cell * 0.9)), marked = down ? now.pin : now.key, said = [];
  const longest = Math.max(...Array.from({ length: count }, (_, x) => wordAt(from + x, side).length));
  const thick = down ? room : Math.min(100, Math.ceil(longest * size * 0.62) + 8);
  const context = down ? fit(canvas, thick, now.side) : fit(canvas, now.side, thick);
  context.font = `${size}px ui-monospace, Menlo, Consolas, monospace`;
  context.textBaseline = "middle";
  context.textAlign = down ? "right" : "left";
  for (let x = 0; x < count; x += every) {
    const word = clipped(wordAt(from + x, side), Math.floor((thick - 6) / (size * 0.62)));
    context.fillStyle = ink(from + x === marked ? "--accent" : "--ink");
    context.save();
    if (down) context.translate(thick - 3, (x + 0.5) * cell);
    else {
      context.translate((x + 0.5) * cell, thick - 3);
      context.rotate(-Math.PI / 2);
    }
    context.fillText(word, 0, 0);
    context.restore();
    said.push(word);
  }
  canvas.dataset.named = said.join(" ");
}

/** @param {string} word @param {number} most */
const clipped = (word, most) => (word.length > most ? word.slice(0, Math.max(1, most - 1)) + "…" : word);

// A margin: how much each key received (on top), how spread each query is (at the side).
/**
 * @param {HTMLCanvasElement} canvas @param {Margin | null} data
 * @param {number} from @param {number} count @param {boolean} flat
 */
function drawMargin(canvas, data, from, count, flat) {
  const thick = 36, long = now.side;
  const context = flat ? fit(canvas, long, thick) : fit(canvas, thick, long);
  if (!data) return undefined;
  const bins = Math.min(count, long), tops = new Float32Array(bins);
  for (let x = 0; x < count; x++) {
    const bin = Math.floor((x * bins) / count);
    tops[bin] = Math.max(tops[bin], data.values[Math.floor((from + x) / data.each)]);
  }
  const highest = tops.reduce((a, x) => Math.max(a, x), 1e-9);
  context.fillStyle = ink("--accent");
  tops.forEach((x, b) => {
    const at = (b * long) / bins, size = (x / highest) * thick, step = Math.max(1, long / bins);
    if (flat) context.fillRect(at, thick - size, step, size);
    else context.fillRect(0, at, size, step);
  });
  return highest;
}

/** @param {Shown | null} shown */
function sayScale(shown) {
  const per = shown?.tile;
  $("shown").textContent = !shown ? "" : shown.close ? "every weight, exact" : per === 1 ? "every weight"
    : `the largest of each ${per} x ${per} tile` + (exactHead() ? `; exact from ${EXACT} tokens on` : "");
  const lines = now.form === "lines", role = roleOf(now.head);
  $("ramp").style.background = lines ? `linear-gradient(90deg, transparent, ${role >= 0 ? roleColor(role) : ink("--accent")})` : rampCss();
  const of = now.rows ? "share of the largest of its row" : "weight";
  $("low").textContent = shown ? `${of} ${said(shown.low)}` : "";
  $("high").textContent = shown ? `${said(shown.high)}, ${SCALES[now.scale]}${now.scale === "adaptive" ? " (from the median)" : " scale"}` : "";
  $("note").textContent = !now.hide ? now.told || "" : shown?.close ? "The first token is hidden; each row is shared out again to 1."
    : exactHead() ? "The first token is hidden; rows are shared out again where weights are exact."
      : `The first tile, of ${per} tokens, is hidden: only heads kept in full can hide one token.`;
  $("margin-said").textContent = now.form === "lines" || now.received === undefined ? ""
    : `above: mean weight each key received, up to ${said(now.received)}; at the side: entropy of each query, up to ${said(now.spread)} nats`;
}

/** @param {MouseEvent} event @returns {[number, number]} */
function placeOf(event) {
  const box = $("map").getBoundingClientRect(), b = now.box;
  const i = Math.floor(b.i + ((event.clientY - box.top) / box.height) * b.n);
  const j = Math.floor(b.j + ((event.clientX - box.left) / box.width) * b.m);
  return [Math.max(0, Math.min(now.n - 1, i)), Math.max(0, Math.min(now.m - 1, j))];
}

/** @param {number} factor @param {number} i @param {number} j */
function zoom(factor, i, j) {
  const b = now.box;
  const n = Math.max(8, Math.min(now.n, Math.round(b.n * factor)));
  const m = Math.max(8, Math.min(now.m, Math.round(b.m * factor)));
  const share = (x, from, size) => (x - from) / size;
  moveTo({ n, m, i: i - share(i, b.i, b.n) * n, j: j - share(j, b.j, b.m) * m });
}

/** @param {number} di @param {number} dj */
function pan(di, dj) {
  moveTo({ ...now.box, i: now.box.i + di, j: now.box.j + dj });
}

/** @param {Box} box */
function moveTo(box) {
  const n = Math.min(now.n, box.n), m = Math.min(now.m, box.m);
  const within = (x, most) => Math.max(0, Math.min(most, Math.round(x)));
  now.box = { n, m, i: within(box.i, now.n - n), j: within(box.j, now.m - m) };
  drawHeadView();
  note();
}

// Look closely at a query and a key, both in the middle.
/** @param {number} i @param {number} j @param {number} size */
function closer(i, j, size) {
  moveTo({ n: size, m: size, i: i - size / 2, j: j - size / 2 });
}

/** @param {MouseEvent} event */
function readout(event) {
  const [i, j] = placeOf(event);
  let words = `query ${i} ${wordAt(i, "queries")} → key ${j} ${wordAt(j)}`;
  if (exactHead()) words += `: ${exactTile(i, j, 1, 1)[0].toPrecision(3)}`;
  $("readout").textContent = words;
}

/** @param {KeyboardEvent} event */
function mapKeys(event) {
  const b = now.box;
  /** @type {[number, number]} */
  const middle = [b.i + b.n / 2, b.j + b.m / 2];
  /** @type {Record<string, [number, number]>} */
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const step = Math.min(b.n, b.m) / 8, move = moves[event.key];
  if (move) pan(move[0] * step, move[1] * step);
  else if (event.key === "+") zoom(0.5, ...middle);
  else if (event.key === "-") zoom(2, ...middle);
  else return;
  event.preventDefault();
}

function watchMap() {
  const map = $("map");
  let held = null;
  map.onkeydown = mapKeys;
  map.onpointerdown = (event) => {
    held = { x: event.clientX, y: event.clientY, i: now.box.i, j: now.box.j, moved: false };
    map.setPointerCapture(event.pointerId);
  };
  map.onpointermove = (event) => {
    readout(event);
    if (!held) return;
    const dx = event.clientX - held.x, dy = event.clientY - held.y;
    held.moved ||= Math.abs(dx) + Math.abs(dy) > 4;
    if (!held.moved) return;
    moveTo({ ...now.box, i: held.i - (dy / now.side) * now.box.n, j: held.j - (dx / now.side) * now.box.m });
  };
  map.onpointerup = (event) => {
    const [i, j] = placeOf(event);
    if (held && !held.moved) choose(i, j, event.shiftKey);
    held = null;
  };
  map.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.4 : 1 / 1.4, ...placeOf(event));
  }, { passive: false });
  map.ondblclick = (event) => zoom(Math.min(0.25, 200 / now.n), ...placeOf(event));
}
