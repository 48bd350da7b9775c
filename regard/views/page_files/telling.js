// The first screen in words and small maps: findings whose heads are links, what was read, and the
// heads that tell most, opened.
const TELLING = 5;
const TALL = 12; // layers
const HEAD_NAME = /(?:[A-Za-z_]+\.)?L\d+[A-Z]?H\d+/g;

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} kind @param {string} [text] @param {object} [attributes]
 * @returns {HTMLElementTagNameMap[T]}
 */
function made(kind, text, attributes = {}) {
  const element = document.createElement(kind);
  if (text) element.textContent = text;
  Object.assign(element, attributes);
  return element;
}

/** @param {Head} head */
const headAddress = (head) => `#head=${head.s}.${head.h}`;

// A sentence, its heads links to them, and a score at its front a link to the grid by that score.
/**
 * @param {string} words @param {Map<string, Head>} named @param {Map<string, string>} titled
 * @param {(head: Head) => string} address
 */
function sentence(words, named, titled, address = headAddress) {
  const item = made("li"), front = /^([^:]+): /.exec(words), score = front && titled.get(front[1]);
  let from = 0;
  if (score) {
    item.append(made("a", front[1], { href: `#color=${score}&order=${score}` }));
    from = front[1].length;
  }
  for (const match of words.matchAll(HEAD_NAME)) {
    const head = named.get(match[0]);
    if (!head || match.index < from) continue;
    item.append(words.slice(from, match.index), made("a", match[0], { href: address(head) }));
    from = match.index + match[0].length;
  }
  item.append(words.slice(from));
  return item;
}

function showFindings() {
  const named = new Map(heads.map((head) => [nameOf(head), head]));
  const titled = new Map(scoreNames.map((name) => [manifest.scores[name].title, name]));
  $("findings").replaceChildren(...(manifest.findings || []).map((x) => sentence(x, named, titled)));
  const { name, ...rest } = manifest.model, many = manifest.tokens.length;
  $("model").textContent = [...Object.values(rest).filter(Boolean).map((x) => String(x).replace("torch.", "")),
    `${heads.length.toLocaleString("en")} heads`, many ? `${many.toLocaleString("en")} tokens` : "", manifest.created?.slice(0, 10)].filter(Boolean).join(" · ");
  const start = manifest.tokens.slice(0, 60).join("").trim().replaceAll(/\s+/g, " ");
  $("read").hidden = !start;
  $("read").textContent = start ? `Read: “${clipped(start, 150)}”` : "";
}

// The best head of each role, then the second of each; then those that matter most.
function mostTelling() {
  const byRole = manifest.roles.map((role, r) => heads.filter((head) => roleOf(head) === r)
    .sort((a, b) => (valueOf(role.name, b) || 0) - (valueOf(role.name, a) || 0)));
  const found = [];
  for (let place = 0; place < heads.length && found.length < TELLING; place++) {
    const row = byRole.map((some) => some[place]).filter(Boolean);
    if (!row.length) break;
    found.push(...row);
  }
  const size = (head) => importance.values[head.s * wide + head.h] || 0;
  const others = [...heads].sort((a, b) => size(b) - size(a)).filter((head) => !found.includes(head));
  return [...found, ...others].slice(0, TELLING);
}

async function showTelling() {
  const place = $("telling");
  place.replaceChildren();
  // Beside a tall grid there is room, and below it nobody looks first.
  $(manifest.sites.length > TALL ? "aside" : "overview").append($("most"));
  for (const head of mostTelling()) {
    const index = manifest.deep.findIndex((d) => d.site === head.s && d.head === head.h);
    const fine = index < 0 ? null : await array("map/" + index);
    const whole = fine ? { bytes: fine.values, rows: fine.shape[0], columns: fine.shape[1] } : smallMap(head);
    if (!whole) continue;
    const size = 224, map = coarser(whole, Math.ceil(Math.max(whole.rows, whole.columns) / size));
    const canvas = made("canvas"), role = manifest.roles[roleOf(head)];
    canvas.setAttribute("aria-hidden", "true");
    const { lut } = levels("adaptive", map.bytes);
    fit(canvas, size, size).drawImage(bitmap(map.bytes.map((x) => lut[x]), map.rows, map.columns), 0, 0, size, size);
    const link = made("a", "", { href: headAddress(head), className: "head-card" });
    if (role) link.style.borderColor = roleColor(roleOf(head));
    link.append(canvas, made("strong", nameOf(head)),
      made("span", role ? ` ${role.title} ${scores[role.name] ? said(valueOf(role.name, head)) : ""}` : " no role", { className: "quiet" }));
    place.append(link);
  }
  $("telling-title").hidden = !place.children.length;
}
