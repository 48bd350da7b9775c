"""A query of a head, channel by channel (BertViz' neuron view): in Python, a notebook, the page."""

import re

import numpy as np
import pytest
import torch

import regard
from regard.analysis.similarity import neuron_view
from regard.core.call import Call
from regard.core.errors import CapabilityError
from tests.test_pages_are_inert import HOSTILE
from tests.views.browser import in_browser, visited
from tests.views.runs import seen


def test_terms_are_those_of_the_neuron_view_and_sum_to_scores():
    head = seen(n=40)["L0H1"]
    found = head.channels(query=30, keys=range(31))
    q, k = (x[None, None].float() for x in (head.deep.q, head.deep.k))
    wanted = neuron_view(Call.of(q, k, k, regard.Rule(regard.Causal())), head=0, row=30)
    scale = head.deep.facts["scale"]
    assert torch.allclose(found.terms.double(), scale * wanted.products[:31], atol=1e-6)
    assert torch.allclose(found.scores.double(), wanted.scores[:31], atol=1e-5)
    assert torch.allclose(found.weights.double(), wanted.weights[:31], atol=2e-3)  # q, k are halves


def test_the_strongest_channels_are_named_and_top_keys_come_first():
    head = seen(n=40)["L0H1"]
    found = head.channels(30, count=4)
    assert [x for x, _, _ in head.top_keys(30, 4)] == list(found.keys)
    channel, adds = found.strongest(found.keys[0])[0]
    assert adds == pytest.approx(float(found.terms[0, channel]))
    assert abs(adds) == pytest.approx(float(found.terms[0].abs().max()))
    assert f"{channel}: {adds:+.2f}" in str(found)
    assert head.channels(-1).query == 39


def test_a_head_without_queries_and_keys_says_so():
    with pytest.raises(CapabilityError, match="kept in full"):
        seen()["L0H3"].channels(3)


def test_what_a_notebook_shows_is_inert():
    made = seen(n=20)
    made.words = [HOSTILE] * 20
    html = made["L0H1"].channels(9)._repr_html_()
    assert HOSTILE not in html
    assert not re.search(r"<(script|svg|a)\b|<img(?! src=\"data:image/png;base64,)", html)
    assert html.count("<img") == 9  # the query and eight keys


@in_browser
def test_the_page_shows_the_same_terms_and_its_address_keeps_them_open(tmp_path):
    made = seen(n=40)
    run = made.run()
    script = """
    const box = document.getElementById("channels");
    const cells = document.getElementById("channel-cells");
    const tick = () => new Promise((done) => setTimeout(done, 50));
    await tick();
    const found = { open: box.open, hash: location.hash, keys: JSON.parse(cells.dataset.shown),
      wide: cells.getBoundingClientRect().width,
      said: document.getElementById("channels-said").textContent };
    found.terms = regard.termsOf(30, found.keys).map((x) => Array.from(x));
    const context = cells.getContext("2d"), at = (110 + 2) * devicePixelRatio;
    found.pixel = Array.from(context.getImageData(at, 30 * devicePixelRatio, 1, 1).data);
    await regard.pinKey(2);
    await tick();
    found.pinned = JSON.parse(cells.dataset.shown);
    box.open = false;
    await tick();
    found.closed = location.hash;
    await regard.show({ s: 0, h: 3 });
    found.bare = box.hidden;
    return found;
    """
    found = visited(run, script, tmp_path, "#head=0.1&query=30&channels=1")
    wanted = made["L0H1"].channels(30)
    assert found["open"]
    assert "channels=1" in found["hash"]
    assert found["keys"] == list(wanted.keys)
    assert np.abs(np.array(found["terms"]) - wanted.terms.numpy()).max() < 1e-5
    first = float(wanted.terms[0, 0])
    red, _, blue, _ = found["pixel"]
    assert (red > blue) == (first > 0)
    assert "channel " in found["said"]
    assert found["pinned"][0] == 2  # a pinned key comes first
    assert len(found["pinned"]) == 8
    assert "channels" not in found["closed"]
    assert found["bare"]
