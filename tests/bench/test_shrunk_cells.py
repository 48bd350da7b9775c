"""The table of shrinking: counts with intervals, units, and a line of advice that is true."""

from __future__ import annotations

import json

import pytest

from regard.bench.shrunk_cells import (
    Cell,
    advice,
    as_fields,
    cell_of,
    fails,
    lost,
    recommended,
    rows,
)
from regard.bench.shrunk_costs import Rate
from regard.bench.shrunk_models import Setting, curves, fit_positions
from regard.bench.statistics import Count
from regard.core.errors import CapabilityError, RegardError, ValueRangeError
from regard.policies.budget import Budget

FULL = Cell("full", None, Count(12, 12), Count(11, 16), 0.84, 1.0, 1.0)


def cell(**given):
    return Cell("h2o", "25%", **{"bytes": 0.26, "flops": 0.9, **given})


def test_a_test_that_the_full_model_fails_says_nothing_of_policies():
    full = Cell("full", None, needle=Count(0, 12), bytes=1.0, flops=1.0)
    other = Cell("h2o", "25%", needle=Count(0, 12), bytes=0.26, flops=0.9)
    assert fails(full, "needle")
    assert "fails the test of needles" in advice(full, full)
    assert "the full model fails every test" in recommended([full, other])
    _, lines = rows([full, other], ["needle"])
    assert lines[0][2] == "0 of 12 (0% to 24%): fails"
    assert "needles" not in advice(other, full)


def test_a_loss_is_told_where_intervals_are_apart_and_doubted_where_they_overlap():
    assert lost(cell(needle=Count(2, 12)), FULL) == (["needles (2 of 12, not 12)"], [])
    assert lost(cell(needle=Count(11, 12)), FULL) == ([], ["needles (11 of 12, not 12)"])
    assert lost(cell(needle=Count(12, 12), bits=0.9), FULL) == (["7% more bits a byte"], [])
    assert lost(cell(needle=Count(12, 12), bits=0.841), FULL) == ([], [])


def test_the_cell_that_keeps_least_of_the_good_ones_is_recommended():
    good = Cell("quantized", None, Count(12, 12), Count(11, 16), 0.842, 0.21, 1.0)
    better = Cell("duo", "10%", Count(12, 12), Count(12, 16), 0.841, 0.18, 1.0)
    bad = Cell("random", "5%", Count(0, 12), Count(0, 16), 1.1, 0.05, 0.9)
    assert recommended([FULL, good, better, bad]).startswith("duo at 10% keeps least")
    assert "no policy here" in recommended([FULL, bad])


def test_headings_name_units():
    head, lines = rows([FULL], ["needle", "bits"])
    assert head[2:4] == ["needles found (95%)", "bits per byte"]
    assert lines[0][2:4] == ["12 of 12 (76% to 100%)", "0.840"]


@pytest.mark.parametrize("keep", [1, 1.0, 0.125, 256, "25%", "256tok", "4MiB", "2 KiB", "100 B"])
def test_a_budget_is_what_its_label_says(keep):
    budget = Budget.of(keep)
    assert Budget.of(budget.label) == budget


def test_one_token_and_all_tokens_are_two_budgets():
    assert Budget.of(1).label == "1tok"
    assert Budget.of(1.0).label == "100%"
    assert Budget.of(1) != Budget.of(1.0)


@pytest.mark.parametrize(
    "keep", ["1", "256", "0.25", "0%", "101%", "0tok", "1.5tok", "", "%", True]
)
def test_a_budget_without_its_unit_is_refused(keep):
    with pytest.raises(ValueRangeError, match="share"):
        Budget.of(keep)


def test_prompts_beyond_the_positions_are_refused():
    with pytest.raises(ValueRangeError, match="at most 2048"):
        fit_positions(Setting(length=2049), 2048, ["needle"])
    fit_positions(Setting(length=2048), 2048, ["needle"])
    with pytest.raises(ValueRangeError, match="at least"):
        fit_positions(Setting(length=60), 2048, ["bits"])


def test_what_was_written_as_shares_is_read_as_counts():
    setting = {"depths": [0.1, 0.5, 0.9], "draws": 4, "keys": 4}
    row = {"policy": "h2o", "keep": 0.25, "needle": 0.3333, "recall": 0.0625, "bits": 0.9}
    found = cell_of(row, setting)
    assert (found.keep, found.needle, found.recall) == ("25%", Count(4, 12), Count(1, 16))
    assert cell_of(json.loads(json.dumps(as_fields(found))), setting) == found


def test_one_refused_policy_is_a_row_that_says_why(monkeypatch):
    pytest.importorskip("transformers")
    from regard.bench import shrunk_models
    from regard.models.loading import load

    def measured(model, tokenizer, made, keep, asked, setting, *_):
        if made is not None and made.name == "snapkv":
            raise CapabilityError("policy", "this model", "another", "take another")
        if made is not None and made.name == "tova":
            raise IndexError("beyond")
        return Cell("full" if made is None else made.name, None, needle=Count(1, 1))

    monkeypatch.setattr(shrunk_models, "measure", measured)
    model, tokenizer = load()
    cells = list(curves(model, tokenizer, ["snapkv", "tova", "h2o"], [0.5], ["needle"]))
    assert [c.policy for c in cells] == ["full", "snapkv", "tova", "h2o"]
    assert cells[2].refused == "it broke with IndexError: beyond"
    assert "got this model" in cells[1].refused
    assert advice(cells[1], cells[0]).startswith("refused: ")


def test_a_table_of_refused_policies_has_a_picture_too(tmp_path):
    pytest.importorskip("matplotlib")
    from regard.bench.shrunk_picture import picture

    cells = [FULL, Cell("lserve", "25%", refused="it is refused")]
    assert picture(cells, tmp_path / "x.png", "one").stat().st_size > 1000


def test_a_model_that_generates_nothing_is_refused_at_once():
    torch = pytest.importorskip("torch")
    with pytest.raises(RegardError, match="decoder"):
        next(curves(torch.nn.Linear(1, 1), None, ["h2o"]))


def test_speed_is_told_where_the_spreads_are_apart_and_not_where_they_meet():
    full = Cell("full", None, Count(12, 12), prompt=Rate(90, 100, 110), decode=Rate(9, 10, 11))
    quick = cell(needle=Count(12, 12), prompt=Rate(95, 104, 115), decode=Rate(19, 20, 21))
    assert advice(quick, full).endswith("with 26% of the bytes, 2x as fast when decoding")
    alike = cell(needle=Count(12, 12), decode=Rate(10, 11, 12))
    assert "as fast" not in advice(alike, full)


def test_a_cell_reads_as_it_was_written():
    one = cell(needle=Count(3, 12), kl=0.5, prompt=Rate(1, 2, 3), decode=Rate(4, 5, 6), peak=7)
    assert cell_of(json.loads(json.dumps(as_fields(one))), {}) == one


def test_the_table_of_a_real_model_has_every_number(tmp_path):
    from regard.bench.shrunk_page import write_shrunk_page
    from regard.models.loading import load

    model, tokenizer = load()
    setting = Setting(length=160, draws=1, texts=2, steps=4, depths=(0.5,))
    asked = ["needle", "bits"]
    cells = list(curves(model.float(), tokenizer, ["streaming"], [0.25, 1.0], asked, setting))
    full, less, whole = cells
    for one in cells:
        assert one.peak
        for rate in (one.prompt, one.decode):
            assert 0 < rate.low <= rate.middle <= rate.high
    assert full.kl == 0
    assert abs(whole.kl) < 1e-5 < less.kl  # a whole budget changes nothing
    text = write_shrunk_page(
        cells, asked, "a model", ["short"], tmp_path / "x.html", "0"
    ).read_text()
    assert text.count("<tr>") == 1 + len(cells)
    assert text.count("<figure>") == 3
    for words in ("KL, nats", "decode, tokens/s", "streaming", advice(less, full)):
        assert words in text
