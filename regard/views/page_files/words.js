// The words of a prompt over the image that was made: a word to its patches, a patch to its words.
/** @type {{ word: number, patch: number | null, step: number, site: number,
 *   picture: OffscreenCanvas | null, maps: Packed<Float32Array> }} */
const told = { word: 0, patch: null, step: 0, site: 0, picture: null, maps: null };
const LISTED = 200; // words in the list: the page stays light

async function loadWords() {
  const words = manifest.words;
  told.picture = await pictureOf();
  $("over-picture").parentElement.hidden = !told.picture;
  $("words-title").textContent = `Where the words of the prompt go (${words.branch} branch)`;
  $("at-step").max = String(words.steps.length);
  $("at-site").max = String(words.sites.length);
  for (const [id, name] of /** @type {const} */ ([["at-step", "step"], ["at-site", "site"]])) {
    $(id).disabled = $(id).max === "1" && name === "step";
    $(id).oninput = () => showWords({ [name]: Number($(id).value) });
  }
  $("over-picture").onchange = () => showWords({});
  const canvas = $("patches");
  canvas.onclick = (event) => {
    const p = patchUnder(event, canvas, gridNow());
    return showWords({ patch: p === told.patch ? null : p });
  };
  canvas.onmousemove = (event) => readPatch(patchUnder(event, canvas, gridNow()));
  canvas.onkeydown = patchKeys;
}

const gridNow = () => told.maps.shape.slice(2);
const cellsNow = () => gridNow()[0] * gridNow()[1];
// Weights of all patches on a token, at the step and the site that are chosen.
/** @param {number} t */
const mapNow = (t) => {
  const at = (told.step * told.maps.shape[1] + t) * cellsNow();
  return told.maps.values.subarray(at, at + cellsNow());
};
/** @param {Float32Array} x */
const mean = (x) => x.reduce((a, y) => a + y, 0) / x.length;

/** @param {{ word?: number, patch?: number | null, step?: number, site?: number }} change */
async function showWords(change) {
  const before = told.maps && gridNow();
  Object.assign(told, change);
  const words = manifest.words;
  told.maps = await array("words/" + told.site);
  const [rows, columns] = gridNow();
  if (told.patch !== null && before && before[1] !== columns && change.patch === undefined) {
    const [r, c] = [Math.floor(told.patch / before[1]), told.patch % before[1]];
    told.patch = Math.floor(((r + 0.5) / before[0]) * rows) * columns
      + Math.floor(((c + 0.5) / before[1]) * columns);
  }
  $("at-step").value = String(told.step);
  $("at-site").value = String(told.site);
  const site = words.sites[told.site - 1];
  $("step-said").textContent = told.step ? `step ${words.steps[told.step - 1]}`
    : `all ${words.steps.length + words.left_out} steps`;
  $("site-said").textContent = (site ? `${site.module} (${site.kind})` : `all ${words.sites.length} sites`)
    + `, ${rows} × ${columns} patches`;
  const over = told.picture && $("over-picture").checked ? told.picture : null;
  drawPatches($("patches"), mapNow(told.word), [rows, columns], over,
    Math.min(460, $("words").clientWidth - 20), told.patch);
  listWords();
  readPatch(told.patch);
  if (change.word !== undefined || change.patch !== undefined) note();
}

function listWords() {
  const { tokens } = manifest.words, { patch } = told;
  const weights = tokens.map((_, t) => (patch === null ? mean(mapNow(t)) : mapNow(t)[patch]));
  const order = [...tokens.keys()];
  if (patch !== null || tokens.length > LISTED) order.sort((a, b) => weights[b] - weights[a]);
  const highest = Math.max(1e-9, ...weights), columns = gridNow()[1];
  $("patch-title").textContent = patch === null ? "Words, with their mean weight"
    : `Patch (${Math.floor(patch / columns)}, ${patch % columns}) looks at`;
  $("word-list").replaceChildren(...order.slice(0, LISTED).map((t) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = tokens[t];
    button.setAttribute("aria-pressed", String(t === told.word));
    button.title = `token ${t}: ${weights[t].toPrecision(3)}`;
    button.style.backgroundSize = `${(100 * weights[t]) / highest}% 3px`;
    button.onclick = () => showWords({ word: t });
    item.append(button, ` ${weights[t].toFixed(3)}`);
    return item;
  }));
}

/** @param {number | null} p */
function readPatch(p) {
  const columns = gridNow()[1], word = manifest.words.tokens[told.word], map = mapNow(told.word);
  $("patch-said").textContent = p === null
    ? `“${word}”: weights from ${rangeOf(map).map((x) => x.toPrecision(3)).join(" to ")}`
    : `patch (${Math.floor(p / columns)}, ${p % columns}) → “${word}”: ${map[p].toPrecision(3)}`;
}

/** @param {KeyboardEvent} event */
function patchKeys(event) {
  const to = walkPatches(event.key, told.patch, gridNow());
  if (event.key === "Escape") showWords({ patch: null });
  else if (to === undefined) return;
  else if (to !== null) showWords({ patch: to });
  event.preventDefault();
}

/** @returns {[string, unknown][]} */
function wordsState() {
  if (!manifest.words || !told.maps) return [];
  const { word, step, site, patch } = told;
  if (!word && patch === null) return [];
  return [["word", word], ["step", step], ["site", site], ["patch", patch]];
}

/** @param {URLSearchParams} params */
function wordsOf(params) {
  const words = manifest.words;
  const word = numberOf(params.get("word"), words.tokens.length), step = numberOf(params.get("step"), words.steps.length + 1);
  const site = numberOf(params.get("site"), words.sites.length + 1);
  if (word === null || step === null || site === null) return { word: 0, step: 0, site: 0, patch: null };
  return { word, step, site, patch: numberOf(params.get("patch"), Infinity) };
}

registerPanel({
  id: "words", has: () => Boolean(manifest.words), load: loadWords, write: wordsState,
  open: (params) => showWords(wordsOf(params)), redraw: () => told.maps && showWords({}),
});
