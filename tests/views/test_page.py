"""The page in a real browser: it says no word to the network, and its numbers are ours."""

import re

import numpy as np
import torch

from regard.views import Seen
from regard.views.colors import ramp
from regard.views.compare import compare_runs, rows_of
from regard.views.page import page
from tests.views.browser import in_browser, visited
from tests.views.runs import seen


def test_the_page_may_ask_the_network_for_nothing():
    text = page(seen().run())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy[1].startswith("default-src 'none'")
    assert "unsafe" not in policy[1]
    assert not re.search(r'(?:src|href)="?(?:https?:)?//', text)


def test_words_cannot_break_out_of_the_page():
    made = seen(n=40)
    evil = "</script><script>alert(1)</script>"
    made = Seen(made.model, made.sites, made.scores, [evil] * 40, made.drawn, made.deep)
    assert evil not in page(made.run())


@in_browser
def test_exact_weights_and_colors_are_those_of_numpy(tmp_path):
    run = seen(n=120).run()
    script = """
    await regard.show(regard.heads[1]);
    const tile = regard.exactTile(20, 3, 50, 60);
    const levels = Array.from(table);
    const spread = await regard.array("entropy/0"), got = await regard.array("received/0");
    return { tile: Array.from(tile), levels, spread: Array.from(spread.values),
      got: Array.from(got.values), note:
      document.getElementById("note").textContent };
    """
    found = visited(run, script, tmp_path)
    wanted = rows_of(run, 0, 20, 70)[:, 3:63]
    assert np.abs(np.array(found["tile"]).reshape(50, 60) - wanted).max() < 1e-5
    levels = ramp(np.arange(256, dtype=np.uint8)).reshape(-1)
    assert found["levels"] == levels.tolist()
    # Margins are bytes: to half a step of their largest, or of its octaves.
    spread = run.arrays["entropy/0"].astype(np.float32).ravel()
    assert np.allclose(found["spread"], spread, rtol=0, atol=0.51 * spread.max() / 255)
    got = run.arrays["received/0"].astype(np.float32).ravel()
    assert np.allclose(found["got"], got, rtol=0.034, atol=got.max() * 2.0**-24)


@in_browser
def test_pixels_of_the_map_are_those_of_the_ramp(tmp_path):
    run = seen(n=64, keep=((0, 1),)).run()
    script = """
    const canvas = document.getElementById("map"), context = canvas.getContext("2d");
    const cell = canvas.width / 64, pixels = [];
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < 64; i++) for (let j = 0; j < 64; j++) {
      const at = 4 * (Math.floor((i + 0.5) * cell) * canvas.width + Math.floor((j + 0.5) * cell));
      pixels.push(data[at], data[at + 1], data[at + 2]);
    }
    return { pixels };
    """
    found = visited(run, script, tmp_path, "#head=0.1&scale=log")
    from regard.probes.maps import log_scale

    wanted = ramp(log_scale(torch.from_numpy(rows_of(run, 0, 0, 64)))).astype(int)
    found = np.array(found["pixels"]).reshape(64, 64, 3)
    assert (np.abs(found - wanted).max(-1) <= 3).mean() > 0.995  # a level apart at a rounding edge


@in_browser
def test_hiding_the_first_token_shares_its_weight_out_again(tmp_path):
    run = seen(n=50).run()
    script = """
    await regard.show(regard.heads[1], 40);
    const box = document.getElementById("hide-sink");
    box.click();
    return { row: Array.from(regard.exactTile(40, 0, 1, 50)),
      tops: document.getElementById("tops").children.length,
      note: document.getElementById("note").textContent, hash: location.hash };
    """
    found = visited(run, script, tmp_path)
    row = rows_of(run, 0, 40, 41)[0]
    row[0] = 0
    assert np.allclose(found["row"], row / row.sum(), atol=2e-3)
    assert "hidden" in found["note"]
    assert found["tops"] > 3
    assert found["hash"] == "#head=0.1&query=40&hide=1"


@in_browser
def test_keys_walk_the_grid_and_an_address_opens_a_head(tmp_path):
    run = seen().run()
    script = """
    const grid = document.getElementById("grid");
    const press = (key, where = grid) =>
      where.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const opened = document.getElementById("head-name").textContent;
    press("Escape", document.body);
    const shut = document.getElementById("head").hidden;
    press("ArrowRight"); press("ArrowRight"); press("ArrowDown");
    const card = document.getElementById("card").textContent;
    document.getElementById("table-button").click();
    const rows = document.querySelectorAll("#table tr").length;
    return { opened, shut, card, rows };
    """
    found = visited(run, script, tmp_path, "#head=L1H2&query=7")  # or 1.2
    assert found["opened"] == "L1H2"
    assert found["shut"]
    assert found["card"].startswith("L1H2")
    assert found["rows"] == 1 + 8


@in_browser
def test_two_runs_are_shown_side_by_side(tmp_path):
    a, b = seen().run(), seen(keep=()).run()
    b.arrays["thumbs"] = np.roll(b.arrays["thumbs"], 1, axis=1)
    script = """
    const canvases = [...document.querySelectorAll("#compare .three canvas")];
    const [color, list] = document.querySelectorAll("#compare select");
    const pixels = () => canvases.map((x) => x.toDataURL());
    const before = pixels(), grid = document.querySelector("#compare > canvas");
    const first = list.selectedOptions[0].textContent;
    canvases[0].dispatchEvent(new KeyboardEvent("keydown", { key: "+", bubbles: true }));
    const zoomed = pixels().map((x, i) => x !== before[i]);
    const was = grid.toDataURL();
    color.value = "entropy";
    color.onchange();
    const links = [...document.querySelectorAll("#compare li a")];
    const recolored = was !== grid.toDataURL();
    links[1].click();
    const later = (x) => new Promise((done) => setTimeout(done, x));
    for (let i = 0; i < 50 && list.selectedIndex === 0; i++) await later(20);
    return { many: canvases.length, first, zoomed, recolored, linked: links[1].textContent,
      chosen: list.selectedOptions[0].textContent,
      colors: [...color.options].map((x) => x.value),
      said: [...document.querySelectorAll("#compare p")].map((x) => x.textContent) };
    """
    b.arrays["scores/entropy"] = b.arrays["scores/entropy"] + np.float32([[0.5], [-0.25]])
    run = compare_runs(a, b)
    found = visited(run, script, tmp_path)
    assert found["zoomed"] == [True, True, True]  # the three zoom as one
    assert found["colors"] == ["jsd", "previous_token", "sink", "entropy"]
    assert found["recolored"]
    assert found["chosen"].startswith(found["linked"] + ": ")  # findings are links to heads
    assert any("full color is 0.50" in x for x in found["said"])
    assert found["many"] == 3
    best = np.unravel_index(run.arrays["jsd"].argmax(), run.arrays["jsd"].shape)
    assert found["first"].startswith(f"L{best[0]}H{best[1]}")
