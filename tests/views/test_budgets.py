"""What a page may weigh. Seconds are measured by `benchmarks/page.py`, sizes are held here."""

import numpy as np
import pytest

from regard.views.compare import rows_of
from regard.views.page import page
from tests.scripts import ROOT, script
from tests.views.browser import in_browser, visited

NAMES = (
    "the model that ships, 2,048 tokens", "one head of 32,768 tokens, d 128",
    "overview of 32 x 32 heads", "12 words, 16 layers, 50 steps, 64 x 96 patches",
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
