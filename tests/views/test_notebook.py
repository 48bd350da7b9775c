"""What objects show in a notebook: static HTML, rendered; and a notebook that runs."""

import ast
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import regard
from regard.core.errors import CapabilityError, RuleError, ValueRangeError
from regard.views.colors import levels
from regard.views.compare import rows_of
from tests.test_pages_are_inert import HOSTILE
from tests.views.browser import BROWSER, in_browser, visited
from tests.views.runs import seen

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "see_heads.ipynb"


def executed(path):
    """Run the cells of a notebook as Jupyter does: what the last line of each shows, as HTML."""
    shown, names = [], {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(path), "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), str(path), "eval"), names)
            html = getattr(value, "_repr_html_", None)
            shown.append(f"<pre>{value!r}</pre>" if html is None else html())
    return shown


def test_a_notebook_runs_and_what_it_shows_needs_no_script():
    pytest.importorskip("transformers")
    shown = executed(NOTEBOOK)
    assert len(shown) == 7
    for html in shown:
        assert not re.search(r"<script|https?://|\bon\w+=", html.replace("http://www.w3.org", ""))
    heads, roles, one, weights, channels, plan, report = shown
    assert heads.count("<circle") == 32
    assert heads.count("<img") == 5
    assert "previous token" in roles
    assert "<line" in one or "<img" in one
    assert weights.startswith("<pre>tensor")
    assert channels.count("<img") == 9  # the query, and the eight keys it looks at most
    assert "cannot" in plan
    assert "KL" in report


def test_exact_weights_are_computed_on_demand():
    made = seen(n=120)
    run = made.run()
    whole = torch.from_numpy(rows_of(run, 0, 0, 120)).float()
    assert torch.allclose(made.weights(0, 1), whole, atol=1e-6)
    part = made.weights(0, 1, rows=slice(100, 110), columns=[3, 99, -1])
    assert torch.allclose(part, whole[100:110][:, [3, 99, 119]], atol=1e-6)
    head = made["L0H1"]
    assert torch.equal(head.weights(5), made.weights(0, 1, rows=5))
    query, word, weight = head.top_queries(10, 1)[0]
    assert query == whole[:, 10].argmax()
    assert (word, weight) == (made.words[query], pytest.approx(float(whole[query, 10]), abs=1e-6))
    assert head.top_keys(50, 3)[0][0] == whole[50].argmax()


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda made: made["L9H9"], RuleError, "L0H0"),
        (lambda made: made.weights(7, 0), RuleError, "count from 0"),
        (lambda made: made.weights(0, 0), CapabilityError, r"heads=\[\(0, 0\)\]"),
        (lambda made: made.weights(0, 1, rows=[90]), RuleError, "0 to 89"),
        (lambda made: made.weights(0, 1, columns=[True]), RuleError, "columns"),
    ],
)
def test_what_is_not_there_is_told(ask, error, says):
    with pytest.raises(error, match=says):
        ask(seen())


def test_a_matrix_that_is_too_large_is_asked_for_in_parts(monkeypatch):
    from regard.views import one_head

    monkeypatch.setattr(one_head, "MOST", 1000)
    made = seen()
    with pytest.raises(ValueRangeError, match="name rows and columns"):
        made.weights(0, 1)
    assert made.weights(0, 1, rows=slice(0, 10)).shape == (10, 90)


def test_a_comparison_names_what_changed_alone_and_draws_it():
    a, b = seen(n=40), seen(n=40)
    b.drawn[b.sites[1]].tiles[3].copy_(b.drawn[b.sites[1]].tiles[3].flip(-1))
    html = regard.compare(a, b)._repr_html_()
    assert "L1H3 0." in html
    assert "0.000" not in html  # what did not change is not among what changed most
    assert html.count("<img") == 3
    assert "<img" not in regard.compare(a, seen(n=40))._repr_html_()


def test_no_word_of_an_object_is_read_as_html():
    made = seen(n=20)
    made.words = [HOSTILE] * 20
    made.model = {"name": HOSTILE}
    for shown in (made, made["L0H1"], made["L0H0"], made.roles):
        html = shown._repr_html_()
        assert "<script" not in html
        assert "onerror=alert(1)>" not in html.replace("&gt;", "")


@in_browser
def test_objects_are_drawn_by_a_browser(tmp_path):
    made = seen(n=20)
    q = torch.randn(1, 2, 64, 8)
    shown = [made, made["L0H1"], seen()["L0H1"], made.roles, regard.plan(q, q, q, regard.Causal())]
    body = "<hr>".join(x._repr_html_() for x in shown)
    path = tmp_path / "cells.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{body}", encoding="utf-8")
    picture = tmp_path / "cells.png"
    subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1600",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", path.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    image = pytest.importorskip("PIL.Image").open(picture).convert("RGB")
    colors = {tuple(x) for x in np.asarray(image)[::4, ::4].reshape(-1, 3)}
    assert len(colors) > 100  # maps, lines and circles


@in_browser
def test_the_page_and_python_draw_maps_by_the_same_scales(tmp_path):
    run = seen(n=90).run()
    script = """
    const kept = (await regard.array("map/0")).values, nothing = new Uint8Array(9);
    const maps = [kept, nothing, new Uint8Array(9).fill(255)];
    return { found: maps.map((x) => ["adaptive", "linear", "log"].map((scale) =>
      Array.from(regard.levels(scale, x).lut))) };
    """
    maps = [run.arrays["map/0"], np.zeros(9, np.uint8), np.full(9, 255, np.uint8)]
    found = visited(run, script, tmp_path)
    for x, by_scale in zip(maps, found["found"], strict=True):
        for scale, lut in zip(("adaptive", "linear", "log"), by_scale, strict=True):
            assert lut == levels(scale, x).tolist(), scale
