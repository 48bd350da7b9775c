"""Views of the page: lines and matrix, scales, search, pins, the address and its history."""

import math
import time

import numpy as np
import torch

import regard
from regard.core.call import Call
from regard.models.engine import Engine
from regard.models.site import Site
from regard.probes import make_probes
from regard.probes.maps import DeepHeads, Maps
from regard.views import Seen
from regard.views.compare import rows_of
from regard.views.page import page
from tests.views.browser import in_browser, visited
from tests.views.runs import seen

TICK = "const tick = (ms = 60) => new Promise((done) => setTimeout(done, ms));"
# How light a pixel of the map is, in the middle of a query and a key.
LIGHT = """
const canvas = document.getElementById("map");
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
const light = (i, j) => {
  const { n, m } = regard.now.box, cell = (x, many, size) => Math.floor(((x + 0.5) * size) / many);
  const at = 4 * (cell(i - regard.now.box.i, n, canvas.height) * canvas.width
    + cell(j - regard.now.box.j, m, canvas.width));
  return 0.3 * data[at] + 0.6 * data[at + 1] + 0.1 * data[at + 2];
};
"""


def repeating(n=2048, period=500, d=32, sink=0.0, words=None, strength=9.0):
    """One head that looks at what followed the earlier copy of its token, others at random."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.nn.functional.normalize(torch.randn(period, d, generator=generator), dim=-1)
    at = torch.arange(n)
    q = codes[at % period] * strength * math.sqrt(d)
    k = codes[(at - 1) % period]
    q, k = (x + 0.1 * torch.randn(n, d, generator=generator) for x in (q, k))
    if sink:  # every query scores so much on the first key
        to = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=-1)
        q, k[0] = q + math.sqrt(d) * to, sink * to
    pair = torch.stack([q, torch.randn(n, d, generator=generator)])[None]
    keys = torch.stack([k, torch.randn(n, d, generator=generator)])[None]
    site = Site(0, module="layers.0.attn", heads=2, kv_heads=2, head_size=d)
    probes, maps = make_probes(["sink", "entropy"]), Maps(n)
    deep = DeepHeads([(site, 0)])
    Engine([*probes, maps, deep]).run(
        Call.of(pair, keys, keys, regard.Rule(regard.Causal()), site=site)
    )
    words = [f" w{i % period}" for i in range(n)] if words is None else words
    scores = {probe.name: probe.result() for probe in probes}
    return Seen({"name": "repeats"}, [site], scores, words, maps.found, deep.found).run()


@in_browser
def test_an_induction_stripe_is_seen_at_2048_tokens_without_zooming(tmp_path):
    run = repeating()
    began = time.perf_counter()
    assert len(page(run).encode()) < 3e6
    script = f"""{LIGHT}
    const stripe = [], around = [];
    for (let i = 700; i < 2040; i += 8) {{
      stripe.push(Math.max(light(i, i - 499), light(i, i - 507)));
      for (const j of [i - 100, i - 250, i - 400]) around.push(light(i, j));
    }}
    const middle = (x) => x.sort((a, b) => a - b)[Math.floor(x.length / 2)];
    const box = {{ ...regard.now.box }};
    return {{ stripe: middle(stripe), around: middle(around), box,
      said: document.getElementById("high").textContent }};
    """
    found = visited(run, script, tmp_path, "#head=0.0")
    assert found["box"] == {"i": 0, "j": 0, "n": 2048, "m": 2048}
    assert found["around"] < 60 < 150 < found["stripe"]
    assert "what stands out" in found["said"]
    assert found["ready"] < 1500, f"ms of opening; the whole test {time.perf_counter() - began:.1f}"


@in_browser
def test_scales_rows_and_a_hidden_sink_change_the_whole_map(tmp_path):
    run = repeating(n=600, period=150, sink=9.0)
    script = f"""{TICK}
    const set = async (id, value) => {{
      const input = document.getElementById(id);
      if (input.type === "checkbox") input.checked = value; else input.value = value;
      input.dispatchEvent(new Event("change"));
      await tick();
      return regard.boxNow();
    }};
    const plain = regard.boxNow(), seen = {{}};
    for (const scale of ["log", "linear"]) {{
      seen[scale] = Array.from((await set("scale", scale)).lut);
    }}
    const rowed = await set("by-row", true);
    const tops = Array.from({{ length: rowed.rows }}, (_, r) =>
      Math.max(...rowed.bytes.subarray(r * rowed.columns, (r + 1) * rowed.columns)));
    await set("by-row", false);
    const hidden = await set("hide-sink", true), note = document.getElementById("note").textContent;
    const column = (x) => Array.from({{ length: x.rows }}, (_, r) => x.bytes[r * x.columns]);
    return {{ seen, tops, before: column(plain), after: column(hidden), tile: hidden.tile, note,
      hash: location.hash, close: hidden.close }};
    """
    found = visited(run, script, tmp_path, "#head=0.0")
    assert found["seen"]["log"] == list(range(256))
    assert found["seen"]["linear"][255] == 255
    assert found["seen"]["linear"][239] == 127  # half the weight, half the way
    assert set(found["tops"]) == {255}
    assert not found["close"]
    from regard.probes.maps import log_scale

    weights, tile = rows_of(run, 0, 0, 600), found["tile"]
    rows = range(0, 600, tile)
    wanted = [weights[r : r + tile, 1:tile].max() for r in rows]
    wanted = log_scale(torch.tensor(np.array(wanted))).astype(int)
    assert np.abs(np.array(found["after"]) - wanted).max() <= 1
    assert np.mean(found["after"]) < np.mean(found["before"]) - 20
    assert "hidden" in found["note"]
    assert found["hash"] == "#head=0.0&scale=linear&hide=1"


@in_browser
def test_rows_with_a_strong_sink_hidden_sum_to_one(tmp_path):
    run = repeating(n=300, period=75, sink=9.0)
    first = rows_of(run, 0, 0, 300)[:, 0]
    rows = [i for i in range(100, 300) if 0.92 < first[i] < 1 - 1e-6][:5]
    assert rows
    script = f"return {{ rows: {rows}.map((i) => Array.from(regard.exactTile(i, 0, 1, 300))) }};"
    found = np.array(visited(run, script, tmp_path, "#head=0.0&hide=1")["rows"])
    assert (found[:, 0] == 0).all()
    assert np.abs(found.sum(1) - 1).max() < 1e-3


@in_browser
def test_words_stand_on_both_axes_from_64_tokens_down(tmp_path):
    run = repeating(n=300, period=75)
    script = f"""{TICK}
    const named = () => ["query-names", "key-names"].map((id) => {{
      const canvas = document.getElementById(id), context = canvas.getContext("2d");
      const area = [0, 0, canvas.width, canvas.height];
      const ink = canvas.hidden ? 0 : context.getImageData(...area).data.filter((x) => x).length;
      return [canvas.hidden, canvas.dataset.named, ink];
    }});
    const wide = named();
    regard.closer(200, 125, 40);
    const close = named();
    return {{ wide, close, hash: location.hash }};
    """
    found = visited(run, script, tmp_path, "#head=0.0")
    assert [x[0] for x in found["wide"]] == [True, True]
    assert [x[0] for x in found["close"]] == [False, False]
    assert found["close"][0][1].split()[:2] == ["␣w30", "␣w31"]
    assert found["close"][1][1].split()[0] == "␣w30"
    assert all(x[2] > 500 for x in found["close"])  # words are drawn
    assert found["hash"] == "#head=0.0&box=180,105,40,40"


@in_browser
def test_a_sentence_has_lines_between_words_and_both_forms_draw_the_same_weights(tmp_path):
    run = repeating(n=20, period=8)
    script = f"""{TICK}
    const lines = document.getElementById("lines"), grid = document.getElementById("map-grid");
    const shown = () => [lines.hidden, grid.hidden], first = shown();
    const all = Number(lines.dataset.drawn);
    await regard.pin(17);
    const one = Number(lines.dataset.drawn), bytes = Array.from(regard.boxNow().bytes);
    document.getElementById("form").click();
    const second = shown(), same = Array.from(regard.boxNow().bytes), hash = location.hash;
    const row = lines.dataset.named;
    return {{ first, all, one, second, same: String(same) === String(bytes), hash, row }};
    """
    found = visited(run, script, tmp_path, "#head=0.0")
    assert found["first"] == [False, True]
    assert found["second"] == [True, False]
    assert found["same"]
    assert 0 < found["one"] < found["all"]
    assert found["hash"] == "#head=0.0&query=17&form=matrix"
    assert len(found["row"].split()) == 40


@in_browser
def test_search_is_over_words_and_keys_name_their_queries(tmp_path):
    words = ["<s>", " the", " ca", "st", "le", " on", " a", " hi", "ll", " the", " Ca", "stle"]
    run = repeating(n=12, period=4, words=words)
    script = f"""{TICK}
    const found = regard.search("castle"), none = regard.search("cast le");
    const input = document.getElementById("find");
    input.value = "the castle";
    input.dispatchEvent(new Event("input"));
    const said = document.getElementById("hits").textContent;
    input.dispatchEvent(new KeyboardEvent("keydown", {{ key: "Enter" }}));
    await tick();
    const first = regard.now.pin;
    input.dispatchEvent(new KeyboardEvent("keydown", {{ key: "Enter" }}));
    await tick();
    const second = regard.now.pin, hash = location.hash;
    const spans = [...document.querySelectorAll("#text span")];
    const marked = spans.filter((x) => x.style.textDecoration).length;
    await regard.pinKey(3);
    const queries = [...document.querySelectorAll("#key-tops li")].map((x) => x.textContent);
    document.querySelector("#key-tops button").click();
    await tick();
    return {{ found, none, said, first, second, hash, marked, queries, pinned: regard.now.pin,
      title: document.getElementById("key-title").textContent,
      map: document.getElementById("minimap").width > 0 }};
    """
    got = visited(run, script, tmp_path, "#head=0.0")
    assert got["found"] == [[2, 4], [10, 11]]  # pieces make a word; capitals are alike
    assert got["none"] == []
    assert got["said"].startswith("2 ×")
    assert (got["first"], got["second"]) == (4, 11)
    assert got["marked"] == 4 + 3
    assert "find=the%20castle" in got["hash"]
    column = rows_of(run, 0, 0, 12)[:, 3]
    order = np.argsort(-column)
    assert got["queries"][0].endswith(f"at {order[0]}: {min(1, column[order[0]]):.3f}")
    assert len(got["queries"]) == (column > 1e-4).sum()
    assert got["pinned"] == order[0]
    assert got["title"].startswith("Key 3: st")


@in_browser
def test_back_and_forward_go_between_views_and_the_address_keeps_the_whole_state(tmp_path):
    run = seen(layers=2, heads=4, n=300).run()
    script = f"""{TICK}
    const at = [], say = () => at.push([location.hash, document.getElementById("head").hidden,
      document.getElementById("head-name").textContent, regard.now.pin]);
    const started = document.getElementById("head-name").textContent;
    const restored = [regard.now.scale, regard.now.rows, regard.now.hide, {{ ...regard.now.box }},
      regard.now.pin, regard.now.key, document.getElementById("find").value];
    document.getElementById("back").click(); await tick(); say();
    document.querySelector("#telling a").click(); await tick(); say();
    await regard.pin(30); say();
    history.back(); await tick(); say();
    history.back(); await tick(); say();
    history.back(); await tick(); say();
    history.forward(); await tick(); history.forward(); await tick(); say();
    return {{ started, restored, at }};
    """
    whole = "#head=0.1&query=250&key=20&box=200,10,60,50&scale=log&rows=1&hide=1&find=w3"
    found = visited(run, script, tmp_path, whole)
    assert found["started"] == "L0H1"
    box = {"i": 200, "j": 10, "n": 60, "m": 50}
    assert found["restored"] == ["log", True, True, box, 250, 20, "w3"]
    heads, opened, pinned, unpinned, again, first, forward = found["at"]
    assert heads[:2] == ["", True]
    assert opened[0].startswith("#head=")
    assert opened[1:] == [False, opened[2], None]
    assert pinned[0] == opened[0] + "&query=30"
    assert unpinned == opened
    assert again[:2] == heads[:2]
    assert first[0] == whole
    assert first[2] == "L0H1"
    assert forward == opened


@in_browser
def test_keys_walk_over_the_heads_of_a_role(tmp_path):
    made = seen(layers=2, heads=4, n=60)
    run = made.run()
    run.manifest["roles"] = [{"name": "sink", "title": "sink", "threshold": 0.1}]
    run.arrays["role"] = np.array([[0, -1, 0, -1], [-1, 0, -1, -1]], np.int8)
    script = f"""{TICK}
    const press = async (key) => {{
      document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
      await tick();
      return document.getElementById("head-name").textContent;
    }};
    const walked = [];
    for (const key of ["n", "n", "n", "p"]) walked.push(await press(key));
    const said = document.getElementById("role-said").textContent;
    return {{ walked, said, query: regard.now.pin }};
    """
    found = visited(run, script, tmp_path, "#head=0.0&query=9")
    scores = run.arrays["scores/sink"]
    order = sorted([(0, 0), (0, 2), (1, 1)], key=lambda x: -scores[x])
    names = [f"L{s}H{h}" for s, h in order]
    at = names.index("L0H0")
    assert found["walked"] == [names[(at + x) % 3] for x in (1, 2, 3, 2)]
    assert found["said"].endswith("of 3")
    assert found["query"] == 9


@in_browser
def test_the_first_screen_opens_five_heads_and_its_sentences_are_links(tmp_path):
    made = seen(layers=2, heads=4, n=60)
    run = made.run()
    run.manifest["findings"] = ["first token: L1H2 0.90, L0H3 0.50 (chance 0.1)", "nothing else"]
    run.manifest["scores"]["sink"]["title"] = "first token"
    script = f"""{TICK}
    const cards = [...document.querySelectorAll("#telling a")];
    const inked = cards.map((card) => {{
      const canvas = card.querySelector("canvas"), area = [0, 0, canvas.width, canvas.height];
      const {{ data }} = canvas.getContext("2d").getImageData(...area);
      return new Set(data).size > 8;
    }});
    const links = [...document.querySelectorAll("#findings a")]
      .map((x) => [x.textContent, x.getAttribute("href")]);
    const low = document.getElementById("most").getBoundingClientRect().bottom;
    document.querySelector("#findings a").click();
    await tick();
    const colored = ["color", "order"].map((id) => document.getElementById(id).value);
    document.querySelectorAll("#findings a")[1].click();
    await tick();
    const [head, model, read] = ["head-name", "model", "read"]
      .map((id) => document.getElementById(id).textContent);
    return {{ inked, links, colored, low, head, model, read }};
    """
    found = visited(run, script, tmp_path)
    assert found["inked"] == [True] * 5
    assert found["links"] == [
        ["first token", "#color=sink&order=sink"], ["L1H2", "#head=1.2"], ["L0H3", "#head=0.3"],
    ]  # fmt: skip
    assert found["colored"] == ["sink", "sink"]
    assert found["head"] == "L1H2"
    assert "60 tokens" in found["model"]
    assert "float32" in found["model"]
    assert found["read"].startswith("Read: “w0 w1")
    assert found["low"] <= 900  # all of it on the first screen
