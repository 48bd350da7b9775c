// A head over a sentence: its words twice, and a line from each query to each key, as strong as the
// matrix would draw that weight.
/** @type {{ step: number, top: number, width: number, hover: { query?: number, key?: number } | null }} */
const lane = { step: 20, top: 8, width: 0, hover: null };

/** @param {Shown} shown */
function drawLines(shown) {
  const { box } = now, many = Math.max(box.n, box.m);
  lane.width = Math.max(260, Math.min(560, $("head").clientWidth - 40));
  const canvas = $("lines"), context = fit(canvas, lane.width, 2 * lane.top + many * lane.step);
  const [left, right] = [lane.width * 0.36, lane.width * 0.64];
  const chosen = lane.hover ?? (now.by === "key" && now.key !== null ? { key: now.key } : now.pin === null ? null : { query: now.pin });
  const role = roleOf(now.head), color = role >= 0 ? roleColor(role) : ink("--accent");
  const y = (x, from) => lane.top + (x - from + 0.5) * lane.step;
  const level = (i, j) => shown.lut[shown.bytes[(i - shown.i) * shown.columns + j - shown.j]] / 255;
  let drawn = 0;
  for (let i = box.i; i < box.i + box.n; i++) {
    for (let j = box.j; j < box.j + box.m; j++) {
      const of = chosen && (chosen.query === i || chosen.key === j), strength = level(i, j);
      if (strength < 0.02 || (chosen && !of)) continue;
      context.globalAlpha = strength * (chosen ? 1 : 0.8);
      context.strokeStyle = color;
      context.lineWidth = 0.5 + 2.5 * strength;
      context.beginPath();
      context.moveTo(left, y(i, box.i));
      context.lineTo(right, y(j, box.j));
      context.stroke();
      drawn++;
    }
  }
  context.globalAlpha = 1;
  context.font = "13px ui-monospace, Menlo, Consolas, monospace";
  context.textBaseline = "middle";
  const most = Math.floor((left - 10) / 8), named = [];
  const word = (x, from, side, mark) => {
    const text = clipped(wordAt(x, side), most), keys = side === "keys";
    if (mark > 0) {
      context.globalAlpha = 0.5 * mark;
      context.fillStyle = color;
      context.fillRect(keys ? right + 2 : 0, y(x, from) - lane.step / 2 + 1, left - 2, lane.step - 2);
      context.globalAlpha = 1;
    }
    context.fillStyle = ink("--ink");
    context.textAlign = keys ? "left" : "right";
    context.fillText(text, keys ? right + 6 : left - 6, y(x, from));
    named.push(text);
  };
  for (let i = box.i; i < box.i + box.n; i++) {
    word(i, box.i, "queries", chosen?.query === i ? 1 : chosen?.key !== undefined ? level(i, chosen.key) : 0);
  }
  for (let j = box.j; j < box.j + box.m; j++) {
    word(j, box.j, "keys", chosen?.key === j ? 1 : chosen?.query !== undefined ? level(chosen.query, j) : 0);
  }
  canvas.dataset.named = named.join(" ");
  canvas.dataset.drawn = String(drawn);
}

// Which word is under the mouse: of the left half a query, of the right half a key.
/** @param {MouseEvent} event @returns {{ query?: number, key?: number } | null} */
function wordUnder(event) {
  const box = $("lines").getBoundingClientRect(), right = event.clientX - box.left > box.width / 2;
  const x = Math.floor((event.clientY - box.top - lane.top) / lane.step);
  if (x < 0 || x >= (right ? now.box.m : now.box.n)) return null;
  return right ? { key: now.box.j + x } : { query: now.box.i + x };
}

function watchLines() {
  const canvas = $("lines"), hover = (found) => {
    if (JSON.stringify(found) === JSON.stringify(lane.hover)) return;
    lane.hover = found;
    drawHeadView();
  };
  canvas.onmousemove = (event) => hover(wordUnder(event));
  canvas.onmouseleave = () => hover(null);
  canvas.onclick = (event) => {
    const found = wordUnder(event);
    if (found) found.key === undefined ? pin(found.query) : pinKey(found.key);
  };
  canvas.onkeydown = (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    pin(Math.max(0, Math.min(now.n - 1, (now.pin ?? (step > 0 ? -1 : now.n)) + step)));
  };
}

/** @param {string} form */
function setForm(form) {
  now.form = form;
  if (form === "lines" && (now.box.n > NAMED || now.box.m > NAMED)) {
    const at = now.pin ?? now.key ?? Math.min(now.n, now.m) - 1;
    now.box = { n: Math.min(32, now.n), m: Math.min(32, now.m), i: 0, j: 0 };
    closer(at, now.pin === null ? at : Math.max(0, at - 8), 32);
    return;
  }
  drawHeadView();
  note();
}
