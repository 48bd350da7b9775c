// Views register themselves; what is looked at, whole, is in the address, so that a link can be
// sent and the browser's own back and forward go between views.
/** @type {Map<string, PageView>} */
const pageViews = new Map();
// What stands beside the grid of all heads where a run has something for it. A panel has the id of
// its section, `has()`, `load()`, `open(params)`, `redraw()`, and `write()` as views have.
/** @type {PagePanel[]} */
const pagePanels = [];

/** @param {PagePanel} panel */
function registerPanel(panel) {
  pagePanels.push(panel);
}

/** @type {{ view: string, applied: string, applying: boolean }} */
const address = { view: null, applied: null, applying: false };

// A view has a name, the sections it shows, `matches(params)`, `open(params)` and `write()`: what
// it would have the address keep, as [key, value] pairs; empty values are left out.
/** @param {PageView} view */
function registerView(view) {
  pageViews.set(view.name, view);
}

function addressNow() {
  const parts = pageViews.get(address.view).write()
    .filter(([, x]) => x !== null && x !== undefined && x !== "" && x !== false)
    .map(([key, x]) => `${key}=${encodeURIComponent(x === true ? "1" : String(x)).replaceAll("%2C", ",")}`);
  return parts.length ? "#" + parts.join("&") : "";
}

// Write the address: as a place to come back to, or over the one that is there.
function note(push = false) {
  if (address.applying) return;
  const next = addressNow();
  address.applied = next;
  if (location.hash === next) return;
  history[push ? "pushState" : "replaceState"](null, "", next || location.pathname + location.search);
}

/** @param {string} name @param {URLSearchParams | Record<string, any>} params @param {boolean} push */
async function go(name, params = {}, push = true) {
  const shown = new Set(pageViews.get(name).sections());
  for (const view of pageViews.values()) for (const id of view.every) $(/** @type {keyof Ids} */ (id)).hidden = !shown.has(id);
  const moved = address.view !== null;
  address.view = name;
  await pageViews.get(name).open(new URLSearchParams(params));
  note(push && moved);
}

async function fromAddress() {
  if (location.hash === address.applied) return;
  address.applied = location.hash;
  const params = new URLSearchParams(location.hash.slice(1));
  const view = [...pageViews.values()].find((x) => x.matches(params));
  address.applying = true;
  try {
    await go(view.name, params, false);
  } finally {
    address.applying = false;
  }
}

/** @param {string | null} text @param {number} below */
const numberOf = (text, below) => {
  const x = text === null || text === "" ? NaN : Number(text);
  return Number.isInteger(x) && x >= 0 && x < below ? x : null;
};
