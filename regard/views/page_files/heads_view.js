// The view of all heads, with the panels that a run has something for.
const panelsHere = () => pagePanels.filter((x) => x.has());

/** @returns {[string, unknown][]} */
function headsState() {
  const kept = (/** @type {"color" | "order"} */ id, /** @type {string} */ first) => ($(id).value === first ? null : $(id).value);
  return [["color", kept("color", "role")], ["order", kept("order", "layer")],
    ["maps", $("thumbs").checked], ["table", !$("table").hidden], ...panelsHere().flatMap((x) => x.write())];
}

/** @param {URLSearchParams} params */
async function openHeads(params) {
  for (const [id, first] of GRID_CHOICES) {
    const wanted = params.get(id);
    $(id).value = [...$(id).options].some((x) => x.value === wanted) ? wanted : first;
  }
  $("thumbs").checked = Boolean(thumbs) && params.get("maps") === "1";
  showTable(params.get("table") === "1");
  drawOverview();
  for (const panel of panelsHere()) await panel.open(params);
}

registerView({
  name: "heads", get every() { return ["overview", ...pagePanels.map((x) => x.id)]; }, sections: () => ["overview", ...panelsHere().map((x) => x.id)],
  matches: (params) => !params.has("head") && !manifest.compare, open: openHeads, write: headsState,
});

/** @param {KeyboardEvent} event */
function gridKeys(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -view.columns, ArrowDown: view.columns }[event.key];
  if (step) {
    const [c, r] = view.places[view.chosen];
    const wanted = view.places.findIndex(([x, y]) => step === -1 || step === 1
      ? x === c + step && y === r : x === c && y === r + Math.sign(step));
    if (wanted >= 0) view.chosen = wanted;
    drawOverview();
    const box = $("grid").getBoundingClientRect(), [x, y] = view.places[view.chosen];
    showCard(view.chosen, box.left + view.left + (x + 1) * view.cell, box.top + view.top + y * view.cell);
  } else if (event.key === "Enter") show(view.order[view.chosen]).then(() => $("map").focus());
  else return;
  event.preventDefault();
}

function watchHeads() {
  const grid = $("grid");
  grid.onmousemove = (event) => showCard(headAt(event), event.clientX, event.clientY);
  grid.onmouseleave = () => showCard(-1);
  grid.onclick = (event) => {
    const index = headAt(event);
    if (index < 0) return;
    view.chosen = index;
    show(view.order[index]);
  };
  grid.onkeydown = gridKeys;
  grid.onfocus = grid.onblur = drawOverview;
  for (const id of /** @type {const} */ (["color", "order", "thumbs"])) {
    $(id).onchange = () => {
      drawOverview();
      note(id !== "thumbs");
    };
  }
  $("table-button").onclick = () => {
    showTable($("table").hidden);
    note();
  };
}
