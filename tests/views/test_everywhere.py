"""The page wherever it is read: on a phone, in the dark, by a screen reader, of any model."""

import re

import numpy as np
import pytest
import torch

import regard
from regard.views.colors import COLOR_OF_ROLE, ROLE_COLORS, role_color
from regard.views.page_weight import budget, elements
from regard.views.roles import ROLES
from tests.views.browser import in_browser, visited
from tests.views.runs import seen

TICK = "const tick = () => new Promise((done) => setTimeout(done, 50));"


def test_each_role_has_a_color_of_its_own():
    assert set(COLOR_OF_ROLE) == set(ROLES)
    assert len({*COLOR_OF_ROLE.values(), role_color("of my own")}) == len(ROLES) + 1
    assert set(COLOR_OF_ROLE.values()) < set(ROLE_COLORS)


@in_browser
@pytest.mark.parametrize("roles", [("sink",), ("previous_token", "local", "sink")])
def test_a_role_looks_the_same_whatever_other_roles_a_run_can_have(roles, tmp_path):
    made = seen(layers=2, heads=4, n=40)
    run = made.run()
    run.manifest["roles"] = [{"name": x, "title": x, "threshold": 0.1} for x in roles]
    run.arrays["role"][:] = len(roles) - 1  # the sink
    script = """
    const legend = [...document.querySelectorAll("#legend span")]
      .find((x) => x.textContent.startsWith("sink"));
    return { legend: legend.querySelector("i").style.background,
      card: document.querySelector(".head-card").style.borderColor };
    """
    found = visited(run, script, tmp_path)
    color = f"rgb({', '.join(str(int(role_color('sink')[i : i + 2], 16)) for i in (1, 3, 5))})"
    assert found["legend"] == found["card"] == color


@in_browser
@pytest.mark.parametrize("address", ["", "#head=0.1&query=30&channels=1", "#head=0.1&form=lines"])
def test_a_phone_shows_the_page_without_scrolling_sideways_in_both_themes(address, tmp_path):
    script = f"""{TICK}
    const of = () => {{
      const style = getComputedStyle(document.documentElement);
      const color = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{{2}}/g)
        .map((x) => parseInt(x, 16));
      const {{ dataset, scrollWidth: wide }} = document.documentElement;
      return {{ theme: dataset.theme, wide,
        colors: ["--ink", "--quiet", "--accent", "--paper", "--panel"].map(color) }};
    }};
    const found = [of()];
    document.getElementById("theme").click();
    await tick();
    found.push(of());
    return {{ found, room: innerWidth }};
    """
    said = visited(seen(n=40).run(), script, tmp_path, address, size="500,900")

    def light(color):
        parts = [x / 255 for x in color]
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    assert {x["theme"] for x in said["found"]} == {"light", "dark"}
    for one in said["found"]:
        assert one["wide"] <= said["room"]
        *inks, paper, panel = (light(x) for x in one["colors"])
        for ink in inks:
            for ground in (paper, panel):
                high, low = max(ink, ground), min(ink, ground)
                assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


@in_browser
def test_a_screen_reader_finds_a_name_for_everything(tmp_path):
    script = """
    const shown = (x) => x.getAttribute("aria-hidden") !== "true";
    const named = (x) => Boolean(x.getAttribute("aria-label") || x.textContent.trim() || x.title
      || x.closest("label")?.textContent.trim());
    const kinds = "canvas, button, select, input, nav, section, summary";
    const all = [...document.querySelectorAll(kinds)];
    const bare = all.filter((x) => shown(x) && !named(x));
    return { count: all.length, without: bare.map((x) => x.outerHTML) };
    """
    found = visited(seen(n=40).run(), script, tmp_path)
    assert found["count"] > 30
    assert found["without"] == []


@in_browser
def test_the_minimap_shows_weights_and_what_was_found_and_moves_the_text(tmp_path):
    run = seen(layers=2, heads=4, n=1500).run()
    run.manifest["tokens"] = [" needle" if i == 1200 else f" w{i % 17}" for i in range(1500)]
    script = f"""{TICK}
    await regard.show(regard.heads[1], 1400);
    regard.find("needle");
    await tick();
    const map = document.getElementById("minimap"), context = map.getContext("2d");
    const high = map.clientHeight, ratio = devicePixelRatio;
    const {{ data }} = context.getImageData(0, 0, map.width, map.height);
    const rows = (x) => Array.from({{ length: high }}, (_, y) => {{
      const at = 4 * (Math.floor((y + 0.5) * ratio) * map.width + Math.floor(x * ratio));
      return data.slice(at, at + 3).join();
    }});
    const right = rows(22), left = rows(8), usual = left.at(-1);
    const first = Number(document.querySelector("#text span").dataset.i);
    map.dispatchEvent(new MouseEvent("click", {{ clientY: map.getBoundingClientRect().top + 2 }}));
    await tick();
    return {{ high, usual, found: right.findIndex((x) => x !== right[0]),
      lit: left.flatMap((x, y) => (x === usual ? [] : [y])),
      weights: Array.from(regard.exactTile(1400, 0, 1, 1500)), first,
      moved: Number(document.querySelector("#text span").dataset.i) }};
    """
    found = visited(run, script, tmp_path)
    assert found["high"] > 300
    assert abs(found["found"] - 1200 / 1500 * found["high"]) <= 1
    best = int(np.argmax(found["weights"]))
    assert min(abs(y - best / 1500 * found["high"]) for y in found["lit"]) <= 1
    assert found["first"] > 700
    assert found["moved"] == 0


@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_largest_weight_is_the_strongest_mark_in_the_text(theme, tmp_path):
    script = f"""{TICK}
    document.documentElement.dataset.theme = "{theme}";
    await regard.show(regard.heads[1], 35);
    await tick();
    const paper = document.createElement("canvas").getContext("2d", {{ willReadFrequently: true }});
    const color = (x) => {{
      paper.fillStyle = getComputedStyle(document.getElementById("text")).backgroundColor;
      paper.fillRect(0, 0, 1, 1);
      const ground = [...paper.getImageData(0, 0, 1, 1).data];
      paper.fillStyle = x;
      paper.fillRect(0, 0, 1, 1);
      const {{ data }} = paper.getImageData(0, 0, 1, 1);
      return [...data].reduce((a, y, c) => a + Math.abs(y - ground[c]), 0);
    }};
    const marks = [...document.querySelectorAll("#text span")].map((x) =>
      (x.style.background ? color(getComputedStyle(x).backgroundColor) : 0));
    return {{ marks, weights: Array.from(regard.exactTile(35, 0, 1, 40)) }};
    """
    found = visited(seen(n=40).run(), script, tmp_path)
    order = np.argsort(found["weights"])
    marks = np.array(found["marks"])[order]
    assert marks[-1] > 100
    assert (np.diff(marks) >= -2).all()  # the larger the weight, the further from the paper


def test_every_head_of_a_small_model_is_kept_and_is_in_its_page():
    model = regard.model(["mha", "mha"], dim=32, heads=4, vocab=50)
    looked = regard.see(model, torch.randint(0, 50, (1, 60)), ["shape"])
    assert [(x.site.layer, x.head) for x in looked.deep] == [
        (s, h) for s in (0, 1) for h in range(4)
    ]
    run, arrays = elements(looked.run(), budget(60))
    assert all(x["exact"] for x in run.manifest["deep"])
    assert len(re.findall('id="a:q/', "".join(arrays))) == 8


def test_a_printed_table_has_eight_heads_of_a_role_and_says_how_many_more():
    pytest.importorskip("rich")
    made = seen(layers=4, heads=8, n=60)
    for values in made.scores["sink"].values.values():
        values[:] = torch.linspace(0.7, 0.9, 8)
    made.scores["sink"].details["rate"] = 1.0
    table = made.table()
    assert table.row_count == 8
    assert table.caption == "24 more: sink"
    said = [x for x in made.findings() if x.startswith("sink")]
    assert len(said) == 1
    assert "L0H7 0.90" in said[0]


def test_what_could_not_be_read_is_said_once_for_each_reason():
    made = seen(n=40)
    made.skipped = {"induction": "it looks ahead", "duplicate_token": "it looks ahead", "x": "y"}
    assert [x for x in made.findings() if x.startswith("not read")] == [
        "not read: induction, duplicate token (it looks ahead)", "not read: x (y)",
    ]  # fmt: skip
