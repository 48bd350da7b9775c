// The view of one head: what it keeps in the address, its controls and keys.
/** @returns {[string, unknown][]} */
const keptState = () => [["scale", now.scale === "adaptive" ? null : now.scale], ["rows", now.rows],
  ["hide", now.hide], ["channels", $("channels").open]];

/** @returns {[string, unknown][]} */
function headState() {
  const { i, j, n, m } = now.box, usual = now.n <= SENTENCE && exactHead() && !manifest.sites[now.head.s].patches ? "lines" : "matrix";
  return [["head", `${now.head.s}.${now.head.h}`], ["query", now.pin], ["key", now.key],
    ["by", now.by === "query" || now.key === null ? null : now.by],
    ["box", isWhole() ? null : [i, j, n, m].join(",")], ["form", now.form === usual ? null : now.form],
    ...keptState(), ["find", $("find").value]];
}

// "18.6", or "L18H6" as sentences name it.
/** @param {URLSearchParams} params */
const headOf = (params) => {
  const asked = params.get("head") || "";
  return heads.find((x) => `${x.s}.${x.h}` === asked || nameOf(x) === asked);
};

/** @param {URLSearchParams} params */
async function openHeadView(params) {
  showCard(-1);
  await openHead(headOf(params));
  now.scale = SCALES[params.get("scale")] ? params.get("scale") : "adaptive";
  now.rows = params.get("rows") === "1";
  $("channels").open = params.get("channels") === "1";
  now.hide = exactHead() || thumbs ? params.get("hide") === "1" : false;
  if (["lines", "matrix"].includes(params.get("form"))) now.form = params.get("form");
  const box = (params.get("box") || "").split(",").map(Number);
  if (box.length === 4 && box.every((x) => Number.isInteger(x) && x >= 0) && box[2] && box[3]) {
    const [i, j, n, m] = box;
    now.box = { n: Math.min(n, now.n), m: Math.min(m, now.m), i: 0, j: 0 };
    now.box.i = Math.min(i, now.n - now.box.n);
    now.box.j = Math.min(j, now.m - now.box.m);
  }
  if (now.form === "lines" && (now.box.n > NAMED || now.box.m > NAMED)) now.form = "matrix";
  const site = manifest.sites[now.head.s], some = alike(now.head), role = manifest.roles[roleOf(now.head)];
  $("head-name").textContent = nameOf(now.head);
  $("role-said").textContent = `${role ? role.title : "no role"}, ${some.findIndex((x) => x.s === now.head.s && x.h === now.head.h) + 1} of ${some.length}`;
  $("head-scores").textContent = scoreNames.filter((name) => valueOf(name, now.head) === valueOf(name, now.head))
    .map((name) => `${manifest.scores[name].title} ${said(valueOf(name, now.head))}`).join(" · ");
  now.told = now.deep?.exact ? "" : now.deep?.left_out
    ? `Its map alone: every weight is in the run file (heads.npz); a page made with --heads ${nameOf(now.head)} has it.`
    : now.deep ? "This rule is drawn from its tiles alone."
    : `A small map only: see it with --heads ${nameOf(now.head)} to keep every weight.`;
  $("hide-sink").disabled = !pooled();
  [$("hide-sink").checked, $("by-row").checked, $("scale").value] = [now.hide, now.rows, now.scale];
  $("form").disabled = !exactHead() || Boolean(site.patches);
  $("find").parentElement.hidden = !showsText(site);
  $("find").value = params.get("find") || "";
  now.pin = numberOf(params.get("query"), now.n);
  now.key = numberOf(params.get("key"), now.m);
  now.by = now.key !== null && (now.pin === null || params.get("by") === "key") ? "key" : "query";
  reading.at = null;
  reading.hits = search($("find").value);
  await showPins();
  find($("find").value);
}

registerView({
  name: "head", every: ["head"], sections: () => ["head"],
  matches: (params) => Boolean(headOf(params)), open: openHeadView, write: headState,
});

// Open a head as the last one was looked at.
/** @param {Head} head @param {number} [query] */
function show(head, query) {
  const params = Object.fromEntries(keptState().filter(([, x]) => x).map(([key, x]) => [key, x === true ? 1 : x]));
  return go("head", { ...params, head: `${head.s}.${head.h}`, ...(query === undefined ? {} : { query }) });
}

// The next head of the same role, at the same tokens.
/** @param {number} step */
function walk(step) {
  const params = new URLSearchParams(addressNow().slice(1)), next = neighbour(step);
  params.set("head", `${next.s}.${next.h}`);
  params.delete("form");
  return go("head", params);
}

async function back() {
  await go(manifest.compare ? "compare" : "heads", {});
  $("grid").focus({ preventScroll: true });
}

/** @param {Event} event */
const typing = (event) => {
  const at = /** @type {HTMLInputElement} */ (event.target);
  return /^(input|select|textarea)$/i.test(at.tagName ?? "") && at.type !== "checkbox";
};

function watchHead() {
  watchMap();
  watchLines();
  watchText();
  watchChannels();
  $("whole").onclick = () => moveTo({ i: 0, j: 0, n: now.n, m: now.m });
  $("scale").replaceChildren(...Object.entries(SCALES).map(([name, title]) => new Option(title, name)));
  const changed = async () => {
    [now.hide, now.rows, now.scale] = [$("hide-sink").checked, $("by-row").checked, $("scale").value];
    await showPins();
    note();
  };
  $("hide-sink").onchange = $("by-row").onchange = $("scale").onchange = changed;
  $("form").onclick = () => setForm(now.form === "lines" ? "matrix" : "lines");
  $("back").onclick = back;
  $("next").onclick = () => walk(1);
  $("previous").onclick = () => walk(-1);
  $("picture").onclick = pinPatch;
  document.addEventListener("keydown", (event) => {
    if ($("head").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") back();
    else if (typing(event)) return;
    else if (event.key === "n") walk(1);
    else if (event.key === "p") walk(-1);
    else if (event.key === "l" && !$("form").disabled) setForm(now.form === "lines" ? "matrix" : "lines");
    else if (event.key === "/" && manifest.tokens.length) {
      event.preventDefault();
      $("find").focus();
    }
  });
}
