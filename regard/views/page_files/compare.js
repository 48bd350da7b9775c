// Two runs: what changed in each head, and the two maps of one beside their difference.
/** @type {{ key: number, box: Box | null, parts: { bytes: Uint8Array, t: number, s: number }[],
 *   canvases: HTMLCanvasElement[], show?: Function, first?: number | null, redraw?: () => void }} */
const two = { key: 0, box: null, parts: [], canvases: [] };

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} kind @param {string} text @param {...Node} children
 * @returns {HTMLElementTagNameMap[T]}
 */
function part(kind, text, ...children) {
  const made = document.createElement(kind);
  made.textContent = text;
  made.append(...children);
  return made;
}

async function loadCompare() {
  const other = manifest.compare;
  if (!other) return;
  $("compare").hidden = false;
  const jsd = await array("jsd");
  const title = part("h2", `A: ${other.names[0]} | B: ${other.names[1]}`);
  const words = part("p", other.note), legend = part("p", ""), help = part("p", "");
  words.className = legend.className = help.className = "quiet";
  const heading = part("ul", "");
  const named = new Map(heads.map((head) => [nameOf(head), head]));
  heading.replaceChildren(...(manifest.findings || []).map((x) =>
    sentence(x, named, new Map(), (head) => `#pair=${nameOf(head)}`)));
  const color = document.createElement("select"), list = document.createElement("select");
  color.append(new Option("Jensen-Shannon distance", "jsd"));
  const changes = {};
  for (const name of scoreNames) {
    changes[name] = await array("change/" + name);
    if (changes[name]) color.append(new Option("change of " + manifest.scores[name].title, name));
  }
  const at = (head) => head.s * wide + head.h;
  const ranked = heads.filter((head) => jsd.values[at(head)] >= 0)
    .sort((x, y) => jsd.values[at(y)] - jsd.values[at(x)]);
  for (const head of ranked.slice(0, 300)) {
    list.append(new Option(`${nameOf(head)}: ${jsd.values[at(head)].toFixed(4)}`, at(head)));
  }
  const grid = document.createElement("canvas"), three = document.createElement("div");
  grid.tabIndex = 0;
  grid.setAttribute("role", "img");
  grid.setAttribute("aria-label", "Change of each head: a row for each layer. Arrow keys move; the list beside gives the same in words.");
  three.className = "three";
  two.canvases = ["A", "B", "B - A"].map((name) => {
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Weights, ${name}: queries down, keys across. Drag, wheel, + and - zoom all three.`);
    three.append(part("figure", "", part("figcaption", name), canvas));
    zoomable(canvas);
    return canvas;
  });
  const bar = document.createElement("div"), whole = part("button", "whole map");
  bar.className = "bar";
  whole.type = "button";
  bar.append(part("label", "color ", color), part("label", "heads by mean Jensen-Shannon distance ", list), whole);
  const said = part("p", "A and B: the largest weight of each tile, on a log scale from 2⁻¹⁶ (dark) to 1 "
    + "(light). B - A: red is more in B, blue is less; full color is 256 times. The three zoom as one.");
  said.className = "quiet";
  $("compare").replaceChildren(title, words, heading, bar, legend, grid, help, three, said);
  const left = 34, top = 18;
  const cell = Math.max(14, Math.min(36, Math.floor(($("compare").clientWidth - 60 - left) / wide)));

  function drawGrid() {
    const by = color.value, values = by === "jsd" ? jsd.values : changes[by].values;
    const columns = by === "jsd" ? wide : changes[by].shape[1];
    const valued = (head) => values[head.s * columns + head.h];
    const most = heads.reduce((x, head) => Math.max(x, Math.abs(valued(head)) || 0), 1e-9);
    const context = fit(grid, left + wide * cell, top + manifest.sites.length * cell);
    context.fillStyle = ink("--quiet");
    context.font = "11px system-ui";
    context.textAlign = "center";
    for (let h = 0; h < wide; h++) context.fillText(String(h), left + (h + 0.5) * cell, 12);
    for (const head of heads) {
      if (head.h === 0) context.fillText("L" + (manifest.sites[head.s].layer ?? head.s), 14, top + (head.s + 0.65) * cell);
    }
    for (const head of heads) {
      const x = valued(head);
      /** @type {[number, number, number, number]} */
      const box = [left + head.h * cell + 1, top + head.s * cell + 1, cell - 2, cell - 2];
      context.strokeStyle = at(head) === two.key ? ink("--accent") : ink("--line");
      context.fillStyle = by === "jsd" ? css(Math.round((255 * Math.max(0, x)) / most)) : difference(x / most);
      if (x === x) context.fillRect(...box);
      context.lineWidth = at(head) === two.key ? 3 : 1;
      context.strokeRect(...box);
    }
    legend.textContent = by === "jsd"
      ? `Dark: the head looks as it did; the lightest, ${most.toFixed(3)}, is the largest mean distance (0 the same, 1 nothing shared).`
      : `Red: the score is higher in B, blue: lower; full color is ${most.toPrecision(2)}.`;
    const chosen = heads.find((head) => at(head) === two.key);
    help.textContent = chosen ? `${nameOf(chosen)}: distance ${jsd.values[two.key].toFixed(3)}`
      + scoreNames.filter((name) => changes[name]).map((name) => {
        const x = changes[name].values[chosen.s * changes[name].shape[1] + chosen.h];
        return x === x ? ` · ${manifest.scores[name].title} ${x > 0 ? "+" : ""}${x.toPrecision(2)}` : "";
      }).join("") : "";
  }
  async function show(key, push = false) {
    two.key = key;
    list.value = key;
    const index = manifest.deep.findIndex((d) => d.site * wide + d.head === key);
    const fine = index < 0 ? null : await array("other/map/" + index);
    const pair = fine ? [await array("map/" + index), fine] : [await array("thumbs"), await array("other/thumbs")];
    two.parts = pair.map((x) => {
      const [t, s] = x.shape.slice(-2), from = fine ? 0 : key * t * s;
      return { bytes: x.values.subarray(from, from + t * s), t, s };
    });
    two.box = { i: 0, j: 0, n: two.parts[0].t, m: two.parts[0].s };
    drawGrid();
    drawThree();
    if (address.view === "compare") note(push);
  }
  two.show = show;
  two.first = ranked.length ? at(ranked[0]) : null;
  grid.onclick = (event) => {
    const box = grid.getBoundingClientRect();
    const s = Math.floor((event.clientY - box.top - top) / cell), h = Math.floor((event.clientX - box.left - left) / cell);
    if (heads.some((head) => head.s === s && head.h === h)) show(s * wide + h, true);
  };
  grid.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
    const next = heads.find((head) => at(head) === two.key + step);
    if (!step || !next) return;
    event.preventDefault();
    show(at(next));
  };
  list.onchange = () => show(Number(list.value), true);
  color.onchange = drawGrid;
  whole.onclick = () => zoomThree(1e9, 0, 0);
  two.redraw = () => {
    drawGrid();
    drawThree();
  };
}

registerView({
  name: "compare", every: ["compare"], sections: () => ["compare"],
  matches: (params) => Boolean(manifest.compare) && !params.has("head"),
  open: async (params) => {
    const pair = params.get("pair"), asked = heads.find((x) => `${x.s}.${x.h}` === pair || nameOf(x) === pair);
    const key = asked ? asked.s * wide + asked.h : two.first;
    if (key !== null) await two.show(key);
  },
  write: () => [["pair", two.key === two.first ? null : `${Math.floor(two.key / wide)}.${two.key % wide}`]],
});

function drawThree() {
  const [a, b] = two.parts, box = two.box;
  const size = Math.max(200, Math.min(400, Math.floor(($("compare").clientWidth - 40) / 3)));
  const apart = document.createElement("canvas"), context = apart.getContext("2d");
  [apart.width, apart.height] = [a.s, a.t];
  for (let p = 0; p < a.t * a.s; p++) {
    context.fillStyle = difference((b.bytes[p] - a.bytes[p]) / 128);
    context.fillRect(p % a.s, Math.floor(p / a.s), 1, 1);
  }
  [bitmap(a.bytes, a.t, a.s), bitmap(b.bytes, b.t, b.s), apart].forEach((image, p) =>
    fit(two.canvases[p], size, size).drawImage(image, box.j, box.i, box.m, box.n, 0, 0, size, size));
}

/** @param {number} factor @param {number} y @param {number} x */
function zoomThree(factor, y, x) {
  const { t, s } = two.parts[0], b = two.box;
  const n = Math.max(4, Math.min(t, b.n * factor)), m = Math.max(4, Math.min(s, b.m * factor));
  const within = (v, most) => Math.max(0, Math.min(most, v));
  two.box = { n, m, i: within(b.i + y * (b.n - n), t - n), j: within(b.j + x * (b.m - m), s - m) };
  drawThree();
}

/** @param {number} di @param {number} dj */
function panThree(di, dj) {
  const { t, s } = two.parts[0], b = two.box;
  b.i = Math.max(0, Math.min(t - b.n, b.i + di * b.n));
  b.j = Math.max(0, Math.min(s - b.m, b.j + dj * b.m));
  drawThree();
}

/** @param {HTMLCanvasElement} canvas */
function zoomable(canvas) {
  let held = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoomThree(event.deltaY > 0 ? 1.4 : 1 / 1.4, (event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
  }, { passive: false });
  canvas.onpointerdown = (event) => {
    held = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (!held) return;
    panThree((held[1] - event.clientY) / canvas.clientHeight, (held[0] - event.clientX) / canvas.clientWidth);
    held = [event.clientX, event.clientY];
  };
  canvas.onpointerup = canvas.onpointercancel = () => { held = null; };
  canvas.onkeydown = (event) => {
    /** @type {[number, number]} */
    const move = { ArrowLeft: [0, -0.1], ArrowRight: [0, 0.1], ArrowUp: [-0.1, 0], ArrowDown: [0.1, 0] }[event.key];
    if (move) panThree(...move);
    else if (event.key === "+" || event.key === "-") zoomThree(event.key === "+" ? 0.5 : 2, 0.5, 0.5);
    else return;
    event.preventDefault();
  };
}
