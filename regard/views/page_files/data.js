// Arrays: gzip, five characters for four bytes, then typed. Halves become floats, since not every browser has halves.
/** @type {Manifest} */
const manifest = JSON.parse(document.getElementById("manifest").textContent);
/** @type {Map<string, Promise<Packed<any>>>} */
const decoded = new Map();

/** @param {string} name @returns {Promise<Packed<any>>} nothing where the run has no such array */
async function array(name) {
  if (!decoded.has(name)) decoded.set(name, read(name));
  return decoded.get(name);
}

/** @param {string} name @returns {Promise<Packed<any>>} */
async function read(name) {
  const element = document.getElementById("a:" + name);
  if (!element) return null;
  const packed = bytesOf(element.textContent, Number(element.dataset.bytes));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const shape = element.dataset.shape.split(",").filter(Boolean).map(Number);
  const kinds = { float32: Float32Array, uint8: Uint8Array, int8: Int8Array };
  const { type, planes, levels, most, each } = element.dataset;
  const values = type !== "float16" ? new kinds[type](bytes)
    : halves(planes === undefined ? new Uint16Array(bytes) : together(new Uint8Array(bytes), shape));
  return { values: levels ? leveled(values, levels, Number(most)) : values, shape, each: Number(each ?? 1) };
}

// Numbers to the base 85, of the characters that mean nothing in HTML.
const digits = new Uint8Array(128);
for (let c = 33, d = 0; c < 127; c++) if (!"\"$&'/<>\\`".includes(String.fromCharCode(c))) digits[c] = d++;

/** @param {string} text @param {number} many */
function bytesOf(text, many) {
  const out = new DataView(new ArrayBuffer(Math.ceil(many / 4) * 4));
  for (let i = 0, at = 0; i < text.length; i += 5, at += 4) {
    let word = 0;
    for (let c = 0; c < 5; c++) word = word * 85 + digits[text.charCodeAt(i + c)];
    out.setUint32(at, word);
  }
  return new Uint8Array(out.buffer, 0, many);
}

// Halves [rows, columns] whose upper bytes come first, then the lower ones, both column by column.
/** @param {Uint8Array} bytes @param {number[]} shape */
function together(bytes, [rows, columns]) {
  const out = new Uint16Array(rows * columns), low = rows * columns;
  for (let c = 0, at = 0; c < columns; c++) {
    for (let r = 0; r < rows; r++, at++) out[r * columns + c] = (bytes[at] << 8) | bytes[low + at];
  }
  return out;
}

// Bytes that stand for numbers from 0 to the largest: in even steps, or in steps of 24 octaves / 255.
/** @param {Uint8Array} bytes @param {string} levels @param {number} most */
function leveled(bytes, levels, most) {
  const even = levels === "even";
  const known = Float32Array.from({ length: 256 }, (_, b) =>
    even ? (most * b) / 255 : b === 0 ? 0 : most * 2 ** ((b / 255 - 1) * 24));
  return Float32Array.from(bytes, (b) => known[b]);
}

const exponents = new Float64Array(32);
for (let e = 1; e < 31; e++) exponents[e] = 2 ** (e - 15);

/** @param {Uint16Array} bits */
function halves(bits) {
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i], sign = x & 0x8000 ? -1 : 1, e = (x >> 10) & 31, f = x & 1023;
    out[i] = e === 0 ? sign * f * 2 ** -24
      : e === 31 ? (f ? NaN : sign * Infinity) : sign * exponents[e] * (1 + f / 1024);
  }
  return out;
}
