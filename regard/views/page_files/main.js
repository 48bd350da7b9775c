// Put together: the title, the theme, the views, the address.
function redraw() {
  if (!$("overview").hidden) {
    drawOverview();
    showTelling();
  }
  for (const panel of pagePanels) if (!$(/** @type {keyof Ids} */ (panel.id)).hidden) panel.redraw();
  if (!$("head").hidden && now.head) {
    drawHeadView();
    showChannels();
    highlight();
  }
  if (!$("compare").hidden) two.redraw?.();
}

/** @param {string} name */
function theme(name) {
  document.documentElement.dataset.theme = name;
  redraw();
}

async function start() {
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = prefers.matches ? "dark" : "light";
  prefers.onchange = () => theme(prefers.matches ? "dark" : "light");
  $("theme").onclick = () => theme(dark() ? "light" : "dark");
  $("title").textContent = manifest.title;
  await loadOverview();
  showFindings();
  await loadCompare();
  for (const panel of panelsHere()) await panel.load();
  watchHeads();
  watchHead();
  addEventListener("hashchange", fromAddress);
  addEventListener("popstate", fromAddress);
  addEventListener("resize", redraw);
  await fromAddress();
  globalThis.READY = performance.now();
  if (!manifest.compare) await showTelling();
  globalThis.regard = { array, exactTile, now, show, pin, pinKey, heads, openHead, showWords, mapNow, told, rolled, showRollout,
    boxNow, closer, termsOf, channelKeys, setForm, search, find, mostTelling, levels };
}

const ready = start();
