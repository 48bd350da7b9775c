// Colors: one ramp for weights, one for differences, a palette for roles that all eyes can tell.
const RAMP = $RAMP;
const ROLE_COLORS = $ROLES;
const dark = () => document.documentElement.dataset.theme === "dark";
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

const css = (byte) => `rgb(${table[3 * byte]} ${table[3 * byte + 1]} ${table[3 * byte + 2]})`;
const rampCss = () => `linear-gradient(90deg,${[0, 64, 128, 192, 255].map(css).join(",")})`;
const logByte = (w) => Math.max(0, Math.min(255,
  Math.round(255 + (255 / 16) * Math.log2(Math.max(w, 2 ** -17)))));

// Blue for less, red for more, grey for no change; x in -1..1.
function difference(x) {
  const size = Math.min(1, Math.abs(x)), grey = dark() ? 60 : 235;
  const to = x < 0 ? [33, 102, 172] : [178, 24, 43];
  return `rgb(${to.map((c) => Math.round(grey + (c - grey) * size)).join(" ")})`;
}

function picture(bytes, height, width) {
  const image = new ImageData(width, height);
  for (let i = 0; i < bytes.length; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = table[3 * bytes[i] + c];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

function bitmap(bytes, height, width) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(picture(bytes, height, width), 0, 0);
  return canvas;
}

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
