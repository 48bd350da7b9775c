// Attention rollout over the patches of an image: up to a layer, from a patch or from all.
/** @type {{ layer: number, patch: number | null, picture: OffscreenCanvas | null, maps: Packed<Uint8Array> }} */
const rolled = { layer: 0, patch: null, picture: null, maps: null };
const LISTED_PATCHES = 8;

async function loadRollout() {
  const { grid } = manifest.rollout, canvas = $("rolled");
  rolled.maps = await array("rollout");
  rolled.picture = await pictureOf();
  rolled.layer = lastLayer();
  $("rollout-over").parentElement.hidden = !rolled.picture;
  $("rollout-title").textContent = "Where the weight of all layers comes from (attention rollout)";
  $("up-to").max = String(lastLayer());
  $("up-to").oninput = () => showRollout({ layer: Number($("up-to").value) });
  $("rollout-over").onchange = () => showRollout({});
  $("rollout-whole").onclick = () => showRollout({ patch: null });
  canvas.onclick = (event) => {
    const p = patchUnder(event, canvas, grid);
    showRollout({ patch: p === rolled.patch ? null : p });
  };
  canvas.onmousemove = (event) => readRollout(patchUnder(event, canvas, grid));
  canvas.onkeydown = rolloutKeys;
}

const lastLayer = () => manifest.rollout.layers.length - 1;

// The chosen rollout onto each patch: of a patch its row; else of the first token where special ones
// come first, or the mean over all tokens.
function rolledNow() {
  const [, n, patches] = rolled.maps.shape, { first } = manifest.rollout, { layer, patch } = rolled;
  const row = (/** @type {number} */ i) => {
    const at = (layer * n + i) * patches;
    return Float32Array.from(rolled.maps.values.subarray(at, at + patches), weightOf);
  };
  if (patch !== null) return row(first + patch);
  if (first) return row(0);
  const out = new Float32Array(patches);
  for (let i = 0; i < n; i++) row(i).forEach((x, p) => { out[p] += x / n; });
  return out;
}

/** @param {number} p */
const rolledName = (p) => `patch (${Math.floor(p / manifest.rollout.grid[1])}, ${p % manifest.rollout.grid[1]})`;

/** @param {{ layer?: number, patch?: number | null }} change */
function showRollout(change) {
  Object.assign(rolled, change);
  const { grid, layers, of, first, modules } = manifest.rollout, weights = rolledNow();
  $("up-to").value = String(rolled.layer);
  $("up-to-said").textContent = `${layers[rolled.layer] + 1} of ${of} (${modules[rolled.layer]})`;
  const over = rolled.picture && $("rollout-over").checked ? rolled.picture : null;
  // Half of all stays in place, so a patch itself would outshine the others: it is drawn as the next.
  const drawn = Float32Array.from(weights);
  if (rolled.patch !== null) {
    drawn[rolled.patch] = 0;
    drawn[rolled.patch] = rangeOf(drawn)[1];
  }
  drawPatches($("rolled"), drawn, grid, over, Math.min(460, $("rollout").clientWidth - 20), rolled.patch);
  $("rollout-from").textContent = `From ${rolled.patch !== null ? rolledName(rolled.patch)
    : first ? "the first token" : "all tokens"}, the most`;
  $("rollout-whole").disabled = rolled.patch === null;
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, LISTED_PATCHES);
  $("rollout-tops").replaceChildren(...order.map((p) => {
    const item = made("li"), button = made("button", rolledName(p), { type: "button" });
    button.onclick = () => showRollout({ patch: p });
    item.append(button, `: ${weights[p].toPrecision(2)}`);
    return item;
  }));
  readRollout(null);
  if (change.layer !== undefined || change.patch !== undefined) note();
}

/** @param {number | null} p */
function readRollout(p) {
  const weights = rolledNow();
  $("rollout-said").textContent = p === null ? `from ${rangeOf(weights).map((x) => x.toPrecision(2)).join(" to ")} a patch`
    : `${rolledName(p)}: ${weights[p].toPrecision(2)}`;
}

/** @param {KeyboardEvent} event */
function rolloutKeys(event) {
  const to = walkPatches(event.key, rolled.patch, manifest.rollout.grid);
  if (event.key === "Escape") showRollout({ patch: null });
  else if (to === undefined) return;
  else if (to !== null) showRollout({ patch: to });
  event.preventDefault();
}

registerPanel({
  id: "rollout", has: () => Boolean(manifest.rollout), load: loadRollout,
  open: (params) => {
    const { grid } = manifest.rollout, layer = numberOf(params.get("rollout"), lastLayer() + 1);
    showRollout({ layer: layer ?? lastLayer(), patch: numberOf(params.get("from"), grid[0] * grid[1]) });
  },
  write: () => [["rollout", rolled.layer === lastLayer() ? null : rolled.layer], ["from", rolled.patch]],
  redraw: () => showRollout({}),
});
