// One query channel by channel: a score is a sum over channels of query and key, and these are its
// terms, for the keys that the query looks at most. BertViz calls it the neuron view.
const CHANNEL_KEYS = 8;

// Terms of the scores of a query on some keys: scale * q * k, which sum to the scores.
/** @param {number} i @param {number[]} keys @returns {Float32Array[]} */
function termsOf(i, keys) {
  const { q, k, scale } = now.deep, size = q.shape[1];
  return keys.map((j) => Float32Array.from({ length: size }, (_, c) => scale * q.values[i * size + c] * k.values[j * size + c]));
}

/** @param {Float32Array} row */
const mostOf = (row) => row.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

// The keys that are shown: the pinned one, then those with the largest weights.
/** @param {Float32Array} weights */
function channelKeys(weights) {
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).filter((j) => weights[j] > 0);
  return [...new Set(now.key === null ? order : [now.key, ...order])].slice(0, CHANNEL_KEYS);
}

function showChannels() {
  const box = $("channels"), canvas = $("channel-cells");
  box.hidden = now.pin === null || !exactHead();
  canvas.dataset.shown = "";
  if (box.hidden || !box.open) return;
  const weights = exactTile(now.pin, 0, 1, now.m), keys = channelKeys(weights), terms = termsOf(now.pin, keys);
  const size = now.deep.q.shape[1], q = now.deep.q.values.subarray(now.pin * size, (now.pin + 1) * size);
  const left = 110, right = 104, step = 20, width = Math.max(300, Math.min(640, $("side").clientWidth - 20));
  const cell = (width - left - right) / size, most = Math.max(...terms.map(mostOf), 1e-9);
  const context = fit(canvas, width, step * (keys.length + 1) + 4);
  context.font = "12px ui-monospace, Menlo, Consolas, monospace";
  context.textBaseline = "middle";
  const line = (row, word, values, top, told) => {
    const y = step * row;
    context.fillStyle = ink("--ink");
    context.textAlign = "right";
    context.fillText(clipped(word, 13), left - 8, y + step / 2);
    values.forEach((x, c) => {
      context.fillStyle = difference(x / top);
      context.fillRect(left + c * cell, y + 2, Math.max(1, cell + 0.3), step - 4);
    });
    context.fillStyle = ink("--quiet");
    context.textAlign = "left";
    context.fillText(told, width - right + 8, y + step / 2);
  };
  line(0, `q ${wordAt(now.pin, "queries")}`, q, Math.max(mostOf(q), 1e-9), "the query");
  keys.forEach((j, r) => {
    const sum = terms[r].reduce((a, x) => a + x, 0);
    line(r + 1, wordAt(j), terms[r], most, `${sum.toFixed(2)}  ${shownWeight(weights[j])}`);
  });
  canvas.dataset.shown = JSON.stringify(keys);
  const best = [...terms[0].keys()].sort((a, b) => Math.abs(terms[0][b]) - Math.abs(terms[0][a])).slice(0, 3);
  $("channels-said").textContent = `Score (sum of the cells${now.deep.softcap ? ", before the soft cap" : ""}) and weight at the right; blue takes, red adds, up to ${most.toFixed(2)}. `
    + `On ${wordAt(keys[0])} most: ${best.map((c) => `channel ${c} ${terms[0][c] < 0 ? "" : "+"}${terms[0][c].toFixed(2)}`).join(", ")}.`;
  canvas.onmousemove = (event) => {
    const at = canvas.getBoundingClientRect(), c = Math.floor((event.clientX - at.left - left) / cell);
    const r = Math.floor((event.clientY - at.top) / step);
    if (c < 0 || c >= size || r > keys.length) return;
    $("channel-readout").textContent = r === 0 ? `channel ${c}: q ${q[c].toFixed(3)}`
      : `channel ${c}: ${wordAt(keys[r - 1])} ${terms[r - 1][c] < 0 ? "" : "+"}${terms[r - 1][c].toFixed(3)}`;
  };
}

function watchChannels() {
  $("channels").ontoggle = () => {
    showChannels();
    note();
  };
}
