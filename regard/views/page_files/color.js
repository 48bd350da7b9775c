// Colors: one ramp for weights, one for differences, a palette for roles that all eyes can tell.
/** @type {[number, number, number][]} */
const RAMP = $RAMP;
/** @type {Record<string, string>} by the names of roles, so that a role looks the same everywhere */
const ROLE_COLORS = $ROLES;
/** @param {number} role */
const roleColor = (role) => ROLE_COLORS[manifest.roles[role]?.name] ?? ROLE_COLORS[""];
const dark = () => document.documentElement.dataset.theme === "dark";
/** @param {string} name */
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Byte 0..255 to [r, g, b]; whole numbers all the way, so that any language draws the same.
const table = new Uint8Array(768);
for (let x = 0; x < 256; x++) {
  const at = x * (RAMP.length - 1), cell = Math.min(RAMP.length - 2, Math.floor(at / 255));
  const part = at - cell * 255;
  for (let c = 0; c < 3; c++) {
    const low = RAMP[cell][c], high = RAMP[cell + 1][c];
    table[3 * x + c] = Math.floor((low * (255 - part) + high * part + 127) / 255);
  }
}

/** @param {number} byte */
const css = (byte) => `rgb(${table[3 * byte]} ${table[3 * byte + 1]} ${table[3 * byte + 2]})`;
const rampCss = () => `linear-gradient(90deg,${[0, 64, 128, 192, 255].map(css).join(",")})`;
const logByte = (w) => Math.max(0, Math.min(255,
  Math.round(255 + (255 / 16) * Math.log2(Math.max(w, 2 ** -17)))));

// The weight that a byte of a map stands for.
const weightOf = (byte) => (byte ? 2 ** ((byte - 255) / (255 / 16)) : 0);

// How bytes of a map are drawn: as they are on the log scale; by their weights; or from the median of
// what is there to its largest, so that what stands out is seen. With the weights at both ends.
const SCALES = { adaptive: "what stands out", log: "log", linear: "linear" };
/** @param {string} scale @param {Uint8Array} bytes @returns {Levels} */
function levels(scale, bytes) {
  const lut = new Uint8Array(256);
  let [low, high] = scale === "adaptive" ? [1, 1] : [1, 255];
  if (scale === "adaptive") {
    const counts = new Uint32Array(256);
    for (const x of bytes) counts[x]++;
    const total = bytes.length - counts[0];
    for (let x = 1, sum = 0; x < 256; x++) {
      sum += counts[x];
      if (sum <= total * 0.5) low = x;
      if (sum - counts[x] < total * 0.9995) high = x;
    }
    if (!total) high = 255;
    low = Math.max(1, Math.min(low, high - 16)); // where all is alike it is all seen
  }
  for (let x = 1; x < 256; x++) {
    lut[x] = scale === "log" ? x : scale === "linear" ? Math.round(255 * weightOf(x))
      : Math.max(0, Math.min(255, Math.round((255 * (x - low)) / Math.max(high - low, 1))));
  }
  return { lut, low: scale === "linear" ? 0 : low === 1 ? 2 ** -16 : weightOf(low), high: weightOf(Math.min(255, high)) };
}

// Each row against its largest weight.
/** @param {Uint8Array} bytes @param {number} rows @param {number} columns */
function normalised(bytes, rows, columns) {
  const out = new Uint8Array(bytes.length);
  for (let r = 0; r < rows; r++) {
    let most = 0;
    for (let c = 0; c < columns; c++) most = Math.max(most, bytes[r * columns + c]);
    for (let c = 0, at = r * columns; c < columns; c++, at++) {
      if (bytes[at]) out[at] = Math.max(1, bytes[at] + 255 - most);
    }
  }
  return out;
}

// A map of fewer rows and columns, each the largest of some: lines a cell wide are not lost.
/**
 * @param {{ bytes: Uint8Array, rows: number, columns: number }} map
 * @param {number} by
 */
function coarser({ bytes, rows, columns }, by) {
  if (by <= 1) return { bytes, rows, columns };
  const [r, c] = [Math.ceil(rows / by), Math.ceil(columns / by)], out = new Uint8Array(r * c);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const at = Math.floor(i / by) * c + Math.floor(j / by);
      out[at] = Math.max(out[at], bytes[i * columns + j]);
    }
  }
  return { bytes: out, rows: r, columns: c };
}

// Blue for less, red for more, grey for no change; x in -1..1.
function difference(x) {
  const size = Math.min(1, Math.abs(x)), grey = dark() ? 60 : 235;
  const to = x < 0 ? [33, 102, 172] : [178, 24, 43];
  return `rgb(${to.map((c) => Math.round(grey + (c - grey) * size)).join(" ")})`;
}

/** @param {Uint8Array} bytes @param {number} height @param {number} width */
function picture(bytes, height, width) {
  const image = new ImageData(width, height);
  for (let i = 0; i < bytes.length; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = table[3 * bytes[i] + c];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

/** @param {Uint8Array} bytes @param {number} height @param {number} width */
function bitmap(bytes, height, width) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(picture(bytes, height, width), 0, 0);
  return canvas;
}

/** @param {HTMLCanvasElement} canvas @param {number} width @param {number} height */
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingEnabled = false;
  return context;
}
