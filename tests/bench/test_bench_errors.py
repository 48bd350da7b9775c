"""The bench says what goes wrong."""

import errno
import json

import pytest
import torch

from regard.bench import records
from regard.bench.records import RECORD, BenchError, record_path
from regard.bench.run_budget import RunBudget, read_budget
from regard.bench.specs import make_layer, read_spec, task_of, why_not
from regard.bench.sweep import carry_out_all, one
from regard.core.errors import CapabilityError, RuleError
from regard.core.files import disk_errors, write_json
from regard.layers.registry import get
from tests.bench.tiny_sweeps import SMALL, tiny


def test_unknown_names_suggest_near_ones():
    with pytest.raises(RuleError, match="sigmoid_attention"):
        tiny(["sigmoid_atention"])
    with pytest.raises(RuleError, match="mqar"):
        tiny(tasks=["mqra"])
    with pytest.raises(RuleError, match="did you mean 'length'"):
        tiny(tasks=["mqar:lenght=4"])


def test_a_layer_without_the_pattern_is_refused_with_the_reason():
    with pytest.raises(CapabilityError, match="it always attends to the future"):
        tiny(["agent_attention"])
    with pytest.raises(CapabilityError, match="no cross-attention"):
        tiny(["retention"], ["translation"])
    assert "mask of the context" in why_not(get("linear"), "cc")


def test_a_layer_that_can_do_some_tasks_leaves_out_the_others():
    planned = tiny(["mha", "retention"], [SMALL, "translation"])
    assert len(planned.runs) == 3
    assert planned.left_out == (
        ("retention", "translation", "nc", "noncausal cross: it has no cross-attention"),
    )


def test_a_streamed_context_hides_what_has_not_come():
    layer = make_layer("mha", "cc", 16, 2, 8)
    x, context = torch.randn(1, 8, 16), torch.randn(1, 8, 16)
    other = context.clone()
    other[:, 5:] += 1
    before, after = layer(x, context), layer(x, other)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_a_full_disk_is_said_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BenchError, match=r"no space left on its disk.*free some space"):
        write_json(tmp_path / "a.json", {"x": 1}, RECORD)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_a_sweep_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("regard.bench.sweep.write_json", _full)
    with pytest.raises(BenchError, match="no space"):
        one(tiny().runs[0], tmp_path)
    assert not list((tmp_path / "claims").iterdir())


def _full(path, content, kind):
    with disk_errors(path, records.BenchError):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": "regard-bench", "version": 99}', "version 99"),
        ('{"format": "other"}', "no regard-bench"),
        ('{"format": "regard', "damaged"),
    ],
)
def test_a_record_of_another_kind_is_refused(tmp_path, content, words):
    run = tiny().runs[0]
    path = record_path(tmp_path, run)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(BenchError, match=words):
        list(carry_out_all(tiny(), tmp_path))


@pytest.mark.parametrize("said", ["5", "5 apples", "m", "1m,2m", "5steps,1Gflops", "-3s"])
def test_a_budget_that_means_nothing_is_refused(said):
    with pytest.raises(RuleError, match="budget"):
        read_budget(said)


def test_budgets_are_read_as_they_are_written():
    assert read_budget("5m") == RunBudget(seconds=300)
    assert read_budget("1.5h,200kparams") == RunBudget(seconds=5400, params=200_000)
    assert read_budget("1e3steps") == RunBudget(steps=1000)
    assert read_spec("mqar:length=128:pairs=8") == ("mqar", {"length": 128, "pairs": 8})
    with pytest.raises(RuleError, match="NAME:SETTING=VALUE"):
        read_spec("mqar:length=128:pairs")
    assert read_spec("mqar:length") == ("mqar:length", {})  # a class by its path
    with pytest.raises(RuleError, match="by its path"):
        task_of("mqar:length")


def test_a_score_that_is_no_number_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.0]}, RECORD)
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["x"], found["y"]) == (None, [None, 1.0])
