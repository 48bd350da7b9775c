// All heads on one canvas: hue says the role, size says how much a head matters.
/**
 * @template {keyof Ids} T
 * @param {T} id
 * @returns {Ids[T]}
 */
const $ = (id) => /** @type {any} */ (document.getElementById(id));
/** @type {Head[]} */
const heads = [];
manifest.sites.forEach((site, s) => {
  for (let h = 0; h < (site.heads || 0); h++) heads.push({ s, h });
});
/** @type {{ order: Head[], columns: number, cell: number, left: number, top: number, chosen: number,
 *   thumbs: Map<number, OffscreenCanvas>, places?: number[][], rows?: number }} */
const view = { order: [], columns: 1, cell: 34, left: 52, top: 20, chosen: 0, thumbs: new Map() };
const scoreNames = Object.keys(manifest.scores);
// The two lists over the grid, and what each begins with.
const GRID_CHOICES = /** @type {const} */ ([["color", "role"], ["order", "layer"]]);
const wide = Math.max(1, ...manifest.sites.map((site) => site.heads || 0));
/** @type {Record<string, Packed<Float32Array>>} */
const scores = {};
/** @type {Packed<Int8Array>} */
let roles = null;
/** @type {Packed<Float32Array>} */
let importance = null;
/** @type {Packed<Uint8Array> | null} */
let thumbs = null;

/** @param {Head} head */
function nameOf(head) {
  const site = manifest.sites[head.s];
  const kind = site.kind === "self" ? "" : site.kind[0].toUpperCase();
  const tower = site.tower ? site.tower + "." : "";
  return tower + (site.layer === null ? site.module + " " : "L" + site.layer) + kind + "H" + head.h;
}
/** @param {number} x */
const said = (x) => (x === 0 ? "0" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) < 0.001
  ? x.toExponential(0) : x.toPrecision(2));
/** @param {string} name @param {Head} head */
const valueOf = (name, head) => scores[name]?.values[head.s * scores[name].shape[1] + head.h];
/** @param {Head} head */
const roleOf = (head) => roles.values[head.s * wide + head.h];
/** @param {string} name @param {Head} head */
const byte = (name, head) => {
  const spec = manifest.scores[name], x = valueOf(name, head);
  if (!(x === x)) return null;
  const high = spec.high === null ? spec.top : spec.high;
  return Math.max(0, Math.min(255, Math.round(255 * (x - spec.low) / ((high - spec.low) || 1))));
};

async function loadOverview() {
  for (const name of scoreNames) {
    scores[name] = await array("scores/" + name);
    manifest.scores[name].top = scores[name].values.reduce((a, x) => (x > a ? x : a), 1e-9);
  }
  [roles, importance, thumbs] = await Promise.all([array("role"), array("importance"), array("thumbs")]);
  for (const [id, first] of GRID_CHOICES) {
    const names = id === "order" ? [first, "role", ...scoreNames] : [first, ...scoreNames];
    for (const name of names) {
      const option = document.createElement("option");
      option.value = name;
      option.textContent = manifest.scores[name]?.title || name;
      $(id).append(option);
    }
  }
  $("thumbs").disabled = !thumbs;
}

function arrange() {
  const by = $("order").value;
  view.order = [...heads];
  if (by === "role") {
    const rank = (head) => (roleOf(head) < 0 ? 99 : roleOf(head));
    view.order.sort((a, b) => rank(a) - rank(b) || a.s - b.s || a.h - b.h);
  } else if (by !== "layer") {
    const x = (head) => valueOf(by, head);
    view.order.sort((a, b) => (x(b) === x(b) ? x(b) : -1e9) - (x(a) === x(a) ? x(a) : -1e9));
  }
  // A tall and narrow grid leaves the room beside it to what is found.
  $("overview").classList.toggle("tall", manifest.sites.length > TALL && wide <= 20);
  const room = Math.max(280, $("grid").parentElement.clientWidth) - view.left - 10;
  // All layers on the first screen, as long as circles stay large enough to be told apart.
  const tall = Math.max(24, Math.floor((innerHeight - 230) / Math.max(1, manifest.sites.length)));
  view.cell = $("thumbs").checked ? Math.max(30, Math.min(110, Math.floor(room / wide)))
    : Math.max(16, Math.min(80, Math.floor(room / wide), by === "layer" ? tall : 80));
  view.columns = by === "layer" ? wide : Math.max(1, Math.floor(room / view.cell));
  view.places = view.order.map((head, i) => by === "layer"
    ? [head.h, head.s] : [i % view.columns, Math.floor(i / view.columns)]);
  view.rows = by === "layer" ? manifest.sites.length : Math.ceil(view.order.length / view.columns);
}

/** @param {Head} head */
function thumb(head) {
  const key = head.s * wide + head.h;
  if (!view.thumbs.has(key)) {
    const { bytes, rows, columns } = smallMap(head), { lut } = levels("adaptive", bytes);
    view.thumbs.set(key, bitmap(bytes.map((x) => lut[x]), rows, columns));
  }
  return view.thumbs.get(key);
}

function drawOverview() {
  arrange();
  const { cell, left, top } = view, byLayer = $("order").value === "layer";
  const context = fit($("grid"), left + view.columns * cell + 8, top + view.rows * cell + 8);
  context.fillStyle = ink("--quiet");
  context.font = "11px system-ui";
  context.textAlign = "right";
  context.textBaseline = "middle";
  if (byLayer) {
    const every = Math.ceil(13 / cell);
    manifest.sites.forEach((site, s) => {
      const label = (site.tower ? site.tower.slice(0, 1).toUpperCase() + "." : "") + (site.layer === null ? s : site.layer) + (site.kind === "self" ? "" : site.kind[0].toUpperCase());
      if (s % every === 0) context.fillText("L" + label, left - 8, top + (s + 0.5) * cell);
    });
    context.textAlign = "center";
    for (let h = 0; h < wide; h += Math.ceil(16 / cell)) {
      context.fillText(String(h), left + (h + 0.5) * cell, 9);
    }
  }
  view.order.forEach((head, i) => {
    const [column, row] = view.places[i];
    drawHead(context, head, left + column * cell, top + row * cell, cell);
    if (i === view.chosen && document.activeElement === $("grid")) { // where the keys are
      context.strokeStyle = ink("--accent");
      context.lineWidth = 2;
      context.strokeRect(left + column * cell + 1, top + row * cell + 1, cell - 2, cell - 2);
    }
  });
  drawLegend();
}

/** @param {CanvasRenderingContext2D} context @param {Head} head @param {number} x @param {number} y @param {number} cell */
function drawHead(context, head, x, y, cell) {
  const by = $("color").value, role = roleOf(head);
  if ($("thumbs").checked && thumbs) {
    context.drawImage(thumb(head), x + 2, y + 2, cell - 4, cell - 4);
    if (role >= 0) {
      context.strokeStyle = roleColor(role);
      context.lineWidth = 2;
      context.strokeRect(x + 2, y + 2, cell - 4, cell - 4);
    }
    return;
  }
  const share = importance.values[head.s * wide + head.h];
  const radius = (cell / 2 - 2) * (0.28 + 0.72 * Math.sqrt(share > 0 ? share : 0));
  context.beginPath();
  context.arc(x + cell / 2, y + cell / 2, radius, 0, 7);
  const level = by === "role" ? null : byte(by, head);
  if (by === "role" ? role < 0 : level === null) {
    context.strokeStyle = ink("--quiet");
    context.lineWidth = 1;
    context.stroke();
  } else {
    context.fillStyle = by === "role" ? roleColor(role) : css(level);
    context.fill();
  }
}

function drawLegend() {
  const by = $("color").value, parts = [];
  const part = (text, color, kind) => {
    const span = document.createElement("span"), mark = document.createElement("i");
    mark.style.background = color;
    if (kind) mark.className = kind;
    span.append(mark, text);
    parts.push(span);
  };
  if (by === "role") {
    manifest.roles.forEach((role, r) => {
      const many = heads.filter((head) => roleOf(head) === r).length;
      if (many) part(`${role.title} (${many})`, roleColor(r));
    });
    const none = heads.filter((head) => roleOf(head) < 0).length;
    if (none) part(`no role (${none})`, "transparent", "ring");
  } else {
    const spec = manifest.scores[by];
    const high = spec.high === null ? spec.top : spec.high;
    const chance = typeof spec.chance === "number" ? `; a head that looks anywhere has ${said(spec.chance)}` : "";
    const read = spec.tokens ? `; ${spec.tokens.toLocaleString("en")} tokens read` : "";
    part(`${spec.low} to ${said(high)}: ${spec.definition}${chance}${read}`, rampCss(), "ramp");
  }
  if ($("thumbs").checked) {
    part("map: queries down, keys across; the largest weight of each tile, from the median of the map to its largest; its frame is the role", rampCss(), "ramp");
  } else {
    part(manifest.scores.importance ? "size: how much the loss feels the head (importance)"
      : "size: how narrow the head looks (low entropy)", "transparent", "none");
  }
  $("legend").replaceChildren(...parts);
}

/** @param {MouseEvent} event */
function headAt(event) {
  const box = $("grid").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - view.left) / view.cell);
  const row = Math.floor((event.clientY - box.top - view.top) / view.cell);
  return view.places.findIndex(([c, r]) => c === column && r === row);
}

/** @param {number} index @param {number} [x] @param {number} [y] */
function showCard(index, x, y) {
  const card = $("card");
  card.hidden = index < 0;
  if (index < 0) return;
  const head = view.order[index], role = roleOf(head);
  const title = document.createElement("strong");
  title.textContent = nameOf(head) + (role >= 0 ? ": " + manifest.roles[role].title : "");
  const list = document.createElement("table");
  for (const name of scoreNames) {
    const value = valueOf(name, head);
    if (!(value === value)) continue;
    const row = list.insertRow();
    row.insertCell().textContent = manifest.scores[name].title;
    row.insertCell().textContent = said(value);
    const chance = manifest.scores[name].chance;
    row.insertCell().textContent = typeof chance === "number" ? `chance ${said(chance)}` : "";
  }
  card.replaceChildren(title, list);
  card.style.left = Math.max(4, Math.min(x + 14, innerWidth - card.offsetWidth - 8)) + "px";
  card.style.top = Math.max(4, Math.min(y + 14, innerHeight - card.offsetHeight - 8)) + "px";
}

/** @param {boolean} shown */
function showTable(shown) {
  const place = $("table");
  place.hidden = !shown;
  if (place.hidden || place.firstChild) return;
  const made = document.createElement("table");
  made.className = "scores";
  const top = made.createTHead().insertRow();
  for (const name of ["head", "role", ...scoreNames]) {
    const cell = document.createElement("th");
    cell.textContent = manifest.scores[name]?.title || name;
    top.append(cell);
  }
  const ranked = [...heads].sort((a, b) => importance.values[b.s * wide + b.h] - importance.values[a.s * wide + a.h]);
  // The page stays light: the heads that matter most; the file beside it has them all.
  for (const head of ranked.slice(0, Math.floor(1500 / (scoreNames.length + 3)))) {
    const row = made.insertRow(), role = roleOf(head);
    row.insertCell().textContent = nameOf(head);
    row.insertCell().textContent = role < 0 ? "" : manifest.roles[role].title;
    for (const name of scoreNames) {
      const value = valueOf(name, head);
      row.insertCell().textContent = value === value ? said(value) : "";
    }
  }
  place.append(made);
}
