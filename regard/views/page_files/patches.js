// Patches of an image: their weights over the picture, where there is one.
async function pictureOf() {
  const data = await array("image");
  if (!data) return null;
  const [high, wideness] = data.shape, image = new ImageData(wideness, high);
  for (let p = 0; p < high * wideness; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = data.values[3 * p + c];
    image.data[4 * p + 3] = 255;
  }
  const plain = new OffscreenCanvas(wideness, high);
  plain.getContext("2d").putImageData(image, 0, 0);
  return plain;
}

// From the lightest patch to the heaviest: without a picture in the colors of weights, with one as
// a veil that the heaviest patch is free of. `chosen` gets a frame.
/**
 * @param {HTMLCanvasElement} canvas @param {Float32Array | null | undefined} weights
 * @param {number[]} grid @param {OffscreenCanvas | null} picture @param {number} long @param {number | null} chosen
 */
function drawPatches(canvas, weights, [rows, columns], picture, long, chosen) {
  const wideness = picture ? picture.width : columns, high = picture ? picture.height : rows;
  const scale = long / Math.max(wideness, high);
  const context = fit(canvas, wideness * scale, high * scale);
  const dx = (wideness * scale) / columns, dy = (high * scale) / rows;
  if (picture) context.drawImage(picture, 0, 0, wideness * scale, high * scale);
  const [low, most] = weights ? rangeOf(weights) : [0, 1];
  for (let p = 0; weights && p < rows * columns; p++) {
    const share = (weights[p] - low) / (most - low || 1);
    context.globalAlpha = picture ? 0.85 * (1 - share) : 1;
    context.fillStyle = css(picture ? 0 : Math.round(255 * share));
    context.fillRect((p % columns) * dx, Math.floor(p / columns) * dy, dx, dy);
  }
  context.globalAlpha = 1;
  if (chosen === null || chosen < 0 || chosen >= rows * columns) return;
  context.strokeStyle = "#ffffff";
  context.lineWidth = 2;
  context.strokeRect((chosen % columns) * dx, Math.floor(chosen / columns) * dy, dx, dy);
}

/** @param {Float32Array} x @returns {number[]} */
const rangeOf = (x) => x.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);

/** @param {MouseEvent} event @param {HTMLCanvasElement} canvas @param {number[]} grid */
function patchUnder(event, canvas, [rows, columns]) {
  const box = canvas.getBoundingClientRect();
  const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
  const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
  return Math.max(0, Math.min(rows - 1, row)) * columns + Math.max(0, Math.min(columns - 1, column));
}

// Where an arrow key leads from a patch, the first where none is chosen: null at an edge, undefined
// where the key is no arrow.
/** @param {string} key @param {number | null} patch @param {number[]} grid @returns {number | null | undefined} */
function walkPatches(key, patch, [rows, columns]) {
  const [r, c] = [Math.floor((patch ?? 0) / columns), (patch ?? 0) % columns];
  const to = { ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c] }[key];
  if (!to) return undefined;
  if (patch === null) return 0;
  return to[0] >= 0 && to[0] < rows && to[1] >= 0 && to[1] < columns ? to[0] * columns + to[1] : null;
}

const patchKind = () => (manifest.modality === "sound" ? "frame" : "patch");

// What a patch is called; frames of sound are a grid of one row.
/** @param {Site} site @param {number} p */
const patchName = (site, p) => (manifest.modality === "sound" ? `frame ${p}`
  : `patch (${Math.floor(p / site.grid[1])}, ${p % site.grid[1]})`);

// Whether the queries, or the keys, of a site are the tokens of the text.
/** @param {Site} site @param {"queries" | "keys"} side */
const readsText = (site, side) => site[side] === manifest.tokens.length && (!site.patches || site.patches.words);

// Which patch a token is, among the queries or the keys of a site; -1 where it is none.
/** @param {number} i @param {Site} site @param {"queries" | "keys"} side */
function patchOf(i, site, side) {
  const from = site.patches?.[side];
  if (from === undefined || from === null) return -1;
  const p = i - from;
  return p >= 0 && p < site.grid[0] * site.grid[1] ? p : -1;
}
