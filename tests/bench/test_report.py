"""What is said from scores can be worked out by hand, and the page holds it."""

import random
import re

import pytest

from regard.bench.drawing import Axis, Chart
from regard.bench.findings import findings
from regard.bench.measuring import slope
from regard.bench.report import report
from regard.bench.results import Results
from regard.bench.speed import Measure, pays_from
from regard.bench.statistics import (
    Count,
    compositional_index,
    efficiency_length,
    estimate,
    ranking,
)


def record(layer, task, score, *, seed=0, chance=0.1, tests=None, pattern="cs"):
    found = {task: {"score": score, "error": 0.01, "chance": chance}}
    found |= {k: {"score": v, "error": 0.01, "chance": chance} for k, v in (tests or {}).items()}
    run = {"layer": layer, "task": task, "pattern": pattern, "seed": seed, "dim": 16, "heads": 2,
           "depth": 2, "positions": "none", "batch": 8, "rate": 1e-3}  # fmt: skip
    curve = [{"share": s, "step": int(10 * s), "seconds": s, "loss": 1.0, "score": s * score}
             for s in (0.0, 0.5, 1.0)]  # fmt: skip
    return {
        "key": f"{layer}-{task}-{seed}", "run": run, "score": score, "chance": chance,
        "tests": found, "curve": curve, "loss": 1.0, "steps": 10, "seconds": 1.0, "flops": 1000,
        "parameters": 100, "diverged": False, "machine": {"device": "a machine", "date": "today"},
    }  # fmt: skip


def results(*records, **more):
    return Results(tuple(records), len(records), **more)


def test_an_interval_of_the_mean_covers_it_as_often_as_it_says():
    rng, inside = random.Random(0), 0
    for _ in range(2000):
        found = estimate([rng.gauss(0, 1) for _ in range(4)])
        inside += found.low < 0 < found.high
    assert abs(inside / 2000 - 0.95) < 0.015


def test_layers_are_ranked_on_the_tasks_that_all_have_done():
    scores = {"a": {"t": [0.5], "u": [1.0]}, "b": {"t": [0.6]}}
    errors = {"a": {"t": [0.0], "u": [0.0]}, "b": {"t": [0.0]}}
    assert [(n, x.mean) for n, x in ranking(scores, errors)] == [("b", 0.6), ("a", 0.5)]


def test_more_seeds_that_agree_make_a_narrower_interval():
    def width(seeds):
        found = ranking({"a": {"t": seeds}}, {"a": {"t": [0.0] * len(seeds)}})[0][1]
        return found.high - found.low

    assert width([0.5, 0.52, 0.48, 0.5]) < width([0.2, 0.8, 0.5, 0.5])


def test_the_index_has_mean_zero_and_no_units():
    scores = {
        "x": {"a": [1.0, 9.0], "b": [2.0, 3.0], "c": [5.0, 4.0]},
        "y": {"a": [1.0], "b": [0.0], "c": [7.0]},
    }
    index = compositional_index(scores)
    assert sum(index.values()) == pytest.approx(0, abs=1e-6)
    moved = {t: {m: [3 * v - 8 for v in vs] for m, vs in by.items()} for t, by in scores.items()}
    assert compositional_index(moved) == pytest.approx(index, abs=1e-6)


def test_layers_pay_from_where_their_cost_crosses():
    n = [64, 128, 256, 512]
    assert efficiency_length(n, [100 * x for x in n], [x * x for x in n]) == pytest.approx(100)
    assert efficiency_length(n, [2 * x * x for x in n], [x * x for x in n]) is None
    assert efficiency_length(n, [x * x / 2 for x in n], [x * x for x in n]) == 0.0


def timed(**seconds):
    lengths = (64, 128, 256, 512)
    return [Measure(who, "forward", n, x, 1) for who, line in seconds.items()
            for n, x in zip(lengths, line, strict=False)]  # fmt: skip


@pytest.mark.parametrize(
    ("mine", "mha", "said"),
    [
        # Slower at every length, with a fit that is cheaper near no tokens at all.
        ([1.1, 2.3, 6.0, 20.0], [1.0, 2.0, 4.0, 8.0], "not up to 512 tokens"),
        ([2.0, 4.0, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0], "not up to 512 tokens"),
        ([0.5, 1.0, 2.0, 4.0], [1.0, 2.0, 4.0, 8.0], "every length measured (64 to 512)"),
        ([4.0, 5.0, 6.0, 7.0], [1.0, 4.0, 16.0, 64.0], "256 tokens, as measured"),
        ([0.9, 3.0, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0], "not up to 512 tokens; faster at 64"),
    ],
)
def test_a_layer_pays_from_where_it_was_faster(mine, mha, said):
    assert pays_from(timed(a=mine, mha=mha), "a", "forward") == said


def test_a_layer_dearer_in_the_end_pays_at_no_length():
    n = [64, 128, 256, 512]
    assert efficiency_length(n, [x * x / 10 + x for x in n], [10 * x + 100 for x in n]) is None


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (2, 6, 0.0968, 0.7000), (12, 12, 0.7575, 1.0), (5, 10, 0.2366, 0.7634)],
)
def test_counts_have_the_intervals_of_wilson(right, total, low, high):
    assert Count(right, total).interval == pytest.approx((low, high), abs=2e-4)


def test_intervals_of_counts_cover_the_truth_as_often_as_they_say():
    rng, inside = random.Random(0), 0
    for _ in range(4000):
        found = Count(sum(rng.random() < 0.2 for _ in range(24)), 24).interval
        inside += found[0] <= 0.2 <= found[1]
    assert 0.93 < inside / 4000 < 0.985


def test_slopes_are_exponents():
    assert slope([1, 10, 100], [2, 20 * 10**0.5, 2000]) == pytest.approx(1.5)


def test_sentences_say_who_learned_what():
    found = findings(results(
        record("a", "t", 0.99), record("b", "t", 0.12), record("a", "u", 0.11),
        record("b", "u", 0.1), record("a", "v", 1.0, tests={"longer": 0.2}), record("b", "v", 0.98),
    ))  # fmt: skip
    text = " ".join(found)
    assert "t (cs): learned by a; not at all by b" in text
    assert "u (cs): no layer learned it" in text
    assert "v (cs): every layer learned it" in text
    assert "v (cs): a learned it, and lost more than half of it on other tests" in text
    assert found[0].startswith("a is ahead")


def test_equal_layers_are_not_told_apart():
    found = findings(results(record("a", "t", 0.5), record("b", "t", 0.5)))
    assert "cannot be distinguished" in found[0]


def test_the_page_asks_the_network_for_nothing_and_runs_nothing():
    page = report(results(record("a<b>", "t", 0.9), record("b", "t", 0.5)))
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert not re.search(r"""\sstyle=""", page)  # the policy allows the one style sheet alone
    assert "a<b>" not in page
    assert "a&lt;b&gt;" in page


def test_the_page_has_a_line_for_every_layer_and_task():
    page = report(results(*(record(n, t, 0.5) for n in "abc" for t in ("t", "u"))))
    curves = page[page.index("Learning curves") : page.index("Accuracy against cost")]
    assert curves.count("<polyline") == 6
    cost = page[page.index("Accuracy against cost") : page.index("By pattern")]
    assert cost.count("<circle") == 6


def test_seeds_make_bands():
    page = report(results(*(record("a", "t", 0.5 + s / 10, seed=s) for s in range(3))))
    assert page.count("<polygon") == 1
    assert "seeds within tasks" in page


def test_patterns_that_a_layer_cannot_do_are_said():
    left_out = (("b", "u", "nc", "noncausal cross: it looks at no context"),)
    page = report(results(
        record("a", "t", 0.5), record("b", "t", 0.6), record("a", "u", 0.9, pattern="nc"),
        left_out=left_out,
    ))  # fmt: skip
    assert "it looks at no context" in page
    assert ">cannot<" in page


def test_scores_that_are_no_numbers_are_drawn_as_nothing():
    broken = {**record("a", "t", 0.5), "score": None, "diverged": True}
    broken["tests"] = {"t": {"score": None, "error": None, "chance": 0.1}}
    page = report(results(broken, record("b", "t", 0.5)))
    assert "were not finite" in page


def test_speeds_are_drawn_with_exponents():
    grows = (("mha", 1e-8, 2), ("linear", 1e-5, 1))
    rows = [
        {"who": who, "what": "forward", "n": n, "seconds": c * n**p, "bytes": n}
        for who, c, p in grows
        for n in (64, 128, 256, 512)
    ]
    page = report(results(record("mha", "t", 0.5), speed=tuple(rows)))
    assert "2.00" in page
    assert "1,000 tokens" in page  # where 1e-5 n falls below 1e-8 n²


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (-3, 40, False), (1, 900, True), (3e-5, 2, True)]
)
def test_ticks_are_few_round_and_within(low, high, log):
    ticks = Axis(low, high, log=log).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low * 0.99 <= t <= high * 1.01 for t in ticks if log)
    assert all(low <= t <= high for t in ticks if not log)


def test_what_lies_on_the_axis_is_drawn_at_its_ends():
    chart = Chart(Axis(0, 10), Axis(0, 1), width=200, height=100)
    chart.point(0, 0, 0)
    chart.point(10, 1, 0)
    assert 'cx="46.0" cy="64.0"' in chart.svg()
    assert 'cx="178.0" cy="10.0"' in chart.svg()


def test_results_show_themselves_as_words_and_in_a_notebook():
    found = results(record("mha", "recall", 0.9), record("ssm<b>", "recall", 0.2))
    first, head, one, two = str(found).splitlines()
    assert first == "Layers compared: 2 of 2 runs"
    assert head.split() == ["layer", "recall", "(cs)"]
    assert one.startswith("mha")
    assert "90.0%" in one
    assert "20.0%" in two
    html = found._repr_html_()
    assert "90.0%" in html
    assert "is ahead" in html
    assert "ssm<b>" not in html
