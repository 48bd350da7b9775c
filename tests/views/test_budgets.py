"""What a page may weigh. Seconds are measured by `benchmarks/page.py`, sizes are held here."""

import numpy as np
import pytest

from regard.views.compare import rows_of
from regard.views.page import page
from regard.views.page_weight import budget, elements
from tests.scripts import ROOT, script
from tests.views.browser import in_browser, visited

NAMES = (
    "the model that ships, 2,048 tokens", "one head of 32,768 tokens, d 128",
    "overview of 32 x 32 heads", "270 heads, 3,138 tokens, d 64",
    "12 words, 16 layers, 50 steps, 64 x 96 patches",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return script("benchmarks/page.py")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_within_its_budget(name, pages):
    assert set(pages.PAGES) == set(pages.BUDGETS) == set(NAMES)
    make, _ = pages.PAGES[name]
    assert len(page(make()).encode()) < pages.BUDGETS[name][0] * 1e6


def test_a_page_carries_the_most_telling_heads_that_fit_and_all_that_were_asked_for(pages):
    def carried(asked):
        run, arrays = elements(pages.talks(3138, asked=asked), budget(3138))
        deep, text = run.manifest["deep"], "".join(arrays)
        assert all((f'id="a:q/{i}"' in text) == x["exact"] for i, x in enumerate(deep))
        assert all(f'id="a:map/{i}"' in text for i in range(len(deep)))
        return [i for i, x in enumerate(deep) if x["exact"]], len(text)

    some, size = carried(False)
    assert some
    assert some == list(range(5))[-len(some) :]
    assert len(some) < 5
    assert size < budget(3138)
    assert carried(True)[0] == list(range(5))


@in_browser
def test_a_head_that_did_not_fit_shows_its_fine_map_and_says_where_its_weights_are(pages, tmp_path):
    run = pages.talks(3138)
    script = """
    const of = async (s) => {
      await regard.show({ s, h: 0 });
      const { margins, deep } = regard.now;
      return { said: document.getElementById("note").textContent, tile: regard.boxNow().tile,
        n: margins.map((x) => [x.each, x.values.length]), exact: deep.exact,
        last: margins.map((x) => x.values[Math.floor(3137 / x.each)]) };
    };
    return { heads: [await of(0), await of(4)] };
    """
    left_out, whole = visited(run, script, tmp_path)["heads"]
    assert whole["exact"]
    assert not left_out["exact"]
    assert left_out["said"].startswith("Its map alone")
    assert "--heads L0H0" in left_out["said"]
    assert left_out["tile"] == whole["tile"] == 13
    assert whole["n"] == [[1, 3138]] * 2
    assert left_out["n"] == [[7, 449]] * 2
    for site, found in ((0, left_out), (4, whole)):
        for name, last, (each, _) in zip(
            ("entropy", "received"), found["last"], found["n"], strict=True
        ):
            x = run.arrays[f"{name}/{site}"][0].astype(np.float32)
            wanted = x[3137 // each * each :].max()
            assert abs(last / wanted - 1) < 0.04, name  # a byte in steps of 24 octaves / 255


@in_browser
def test_a_head_of_32k_tokens_opens_and_its_tile_is_exact(pages, tmp_path):
    make, address = pages.PAGES["one head of 32,768 tokens, d 128"]
    run = make()
    script = """
    const tile = regard.exactTile(20000, 18000, 256, 256);
    return { name: document.getElementById("head-name").textContent, tile: Array.from(tile) };
    """
    found = visited(run, script, tmp_path, address)  # a clean console, no request, < 2,000 nodes
    assert found["name"] == "L0H0"
    wanted = rows_of(run, 0, 20000, 20256)[:, 18000:18256]
    assert np.abs(np.array(found["tile"]).reshape(256, 256) / wanted - 1).max() < 1e-3


@in_browser
def test_an_overview_of_1024_heads_is_light(pages, tmp_path):
    make, address = pages.PAGES["overview of 32 x 32 heads"]
    script = """
    document.getElementById("thumbs").click();
    document.getElementById("table-button").click();
    return { rows: document.querySelectorAll("#table tr").length };
    """
    assert visited(make(), script, tmp_path, address)["rows"] > 300
