// Put together: the title, the address, the keys, the mouse.
function setHash() {
  const head = now.head;
  const part = $("head").hidden ? hashOfWords() : `#head=${head.s}.${head.h}` + (now.pin === null ? "" : `&query=${now.pin}`);
  if (location.hash !== part) history.replaceState(null, "", part || location.pathname);
}

async function show(head, query) {
  $("overview").hidden = $("compare").hidden = $("words").hidden = true;
  $("head").hidden = false;
  showCard(-1);
  await openHead(head);
  if (query !== undefined && query < now.n) await pin(query);
  setHash();
}

function back() {
  $("head").hidden = true;
  $(manifest.compare ? "compare" : "overview").hidden = false;
  $("words").hidden = !manifest.words;
  drawOverview();
  setHash();
  $("grid").focus({ preventScroll: true });
}

async function fromHash() {
  const found = /head=(\d+)\.(\d+)(?:&query=(\d+))?/.exec(location.hash);
  const head = found && heads.find((x) => x.s === +found[1] && x.h === +found[2]);
  if (head) await show(head, found[3] === undefined ? undefined : +found[3]);
  else if (told.maps && wordsOfHash()) await showWords(wordsOfHash());
}

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

function mapKeys(event) {
  const b = now.box, middle = [b.i + b.n / 2, b.j + b.m / 2];
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (moves[event.key]) pan(...moves[event.key].map((x) => (x * Math.min(b.n, b.m)) / 8));
  else if (event.key === "+") zoom(0.5, ...middle);
  else if (event.key === "-") zoom(2, ...middle);
  else return;
  event.preventDefault();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  if (!$("overview").hidden) drawOverview();
  if (!$("words").hidden) showWords({});
  if (!$("head").hidden && now.head) drawMap();
  if (now.pin !== null && !$("head").hidden) highlight(rowWeights(now.pin));
  if (!$("compare").hidden) two.redraw?.();
}

async function start() {
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = prefers.matches ? "dark" : "light";
  prefers.onchange = () => theme(prefers.matches ? "dark" : "light");
  $("theme").onclick = () => theme(dark() ? "light" : "dark");
  $("title").textContent = manifest.title;
  const { name, ...rest } = manifest.model;
  $("model").textContent = [...Object.values(rest).filter(Boolean),
    `${heads.length} heads`, manifest.created?.slice(0, 10)].filter(Boolean).join(" · ");
  $("findings").replaceChildren(...(manifest.findings || []).map((words) => {
    const item = document.createElement("li");
    item.textContent = words;
    return item;
  }));
  await loadOverview();
  drawOverview();
  await loadCompare();
  await loadWords();
  const grid = $("grid"), map = $("map");
  grid.onmousemove = (event) => showCard(headAt(event), event.clientX, event.clientY);
  grid.onmouseleave = () => showCard(-1);
  grid.onclick = (event) => {
    const index = headAt(event);
    if (index >= 0) {
      view.chosen = index;
      show(view.order[index]);
    }
  };
  grid.onkeydown = gridKeys;
  map.onkeydown = mapKeys;
  let held = null;
  map.onpointerdown = (event) => {
    held = { x: event.clientX, y: event.clientY, i: now.box.i, j: now.box.j, moved: false };
    map.setPointerCapture(event.pointerId);
  };
  map.onpointermove = (event) => {
    readout(event);
    if (!held) return;
    const dx = event.clientX - held.x, dy = event.clientY - held.y;
    held.moved ||= Math.abs(dx) + Math.abs(dy) > 4;
    if (!held.moved) return;
    now.box.i = held.i;
    now.box.j = held.j;
    pan((-dy / now.side) * now.box.n, (-dx / now.side) * now.box.m);
  };
  map.onpointerup = (event) => {
    if (held && !held.moved) pin(placeOf(event)[0]);
    held = null;
  };
  map.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.4 : 1 / 1.4, ...placeOf(event));
  }, { passive: false });
  map.ondblclick = (event) => zoom(Math.min(0.25, 200 / now.n), ...placeOf(event));
  $("whole").onclick = () => {
    now.box = { i: 0, j: 0, n: now.n, m: now.m };
    drawMap();
  };
  $("hide-sink").onchange = () => (now.pin === null ? drawMap() : pin(now.pin));
  $("back").onclick = back;
  $("table-button").onclick = toggleTable;
  $("text").onclick = (event) => event.target.dataset.i && pin(+event.target.dataset.i);
  $("picture").onclick = pinPatch;
  $("find").oninput = () => find($("find").value);
  $("find").onkeydown = (event) => {
    if (event.key !== "Enter") return;
    const hits = find($("find").value), next = hits.find((i) => i > (now.pin ?? -1)) ?? hits[0];
    if (next !== undefined) pin(next);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("head").hidden) back();
  });
  addEventListener("hashchange", fromHash);
  addEventListener("resize", () => ($("head").hidden ? ($("compare").hidden ? drawOverview() : two.redraw?.()) : drawMap()));
  await fromHash();
  globalThis.READY = performance.now();
  globalThis.regard = { array, exactTile, now, show, pin, heads, openHead, showWords, mapNow, told };
}

const ready = start();
