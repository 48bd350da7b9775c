"""A run of the bench is fair, ends when told, and goes on where it was killed."""

import json
from dataclasses import replace

import pytest
import torch

from regard.bench import training
from regard.bench.backbone import Backbone, parameters, width_for
from regard.bench.specs import task_of
from regard.bench.training import carry_out, seed_of
from regard.tasks import task as make_task
from tests.bench.tiny_sweeps import SMALL, numbers, tiny


def test_a_run_repeats_and_its_seed_matters():
    run = tiny().runs[0]
    first, second, other = (carry_out(r) for r in (run, run, replace(run, seed=1)))
    assert numbers(json.loads(json.dumps(first))) != numbers(other)
    assert first["score"] == second["score"]
    assert first["loss"] == second["loss"]


def test_every_layer_sees_the_same_rows_in_the_same_order(monkeypatch):
    seen = []
    drawn = type(make_task("induction")).draw

    def draw(self, size, random):
        batch = drawn(self, size, random)
        seen[-1].append(batch.x)
        return batch

    monkeypatch.setattr(type(make_task("induction")), "draw", draw)
    for layer in ("mha", "linear"):
        seen.append([])
        carry_out(tiny([layer]).runs[0])
    assert len(seen[0]) == len(seen[1]) > 4
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_tests_are_drawn_by_seeds_that_training_never_reaches():
    assert (
        max(seed_of(seed, step) for seed in range(50) for step in (0, 10**7)) < training.TEST_SEED
    )


def test_training_lowers_the_loss_and_raises_the_score():
    run = tiny(tasks=["copy:length=3:vocab=6"], budget="150steps", rate=1e-2).runs[0]
    record = carry_out(run)
    assert record["score"] > 0.6
    assert record["curve"][-1]["score"] > record["curve"][0]["score"] + 0.2
    assert record["curve"][-1]["share"] == 1.0


def test_budgets_end_training_where_they_say():
    steps = carry_out(tiny(budget="5steps").runs[0])
    assert steps["steps"] == 5
    flops = carry_out(tiny(budget=f"{3 * steps['flops_a_step']}flops").runs[0])
    assert flops["steps"] == 3
    timed = carry_out(tiny(budget="0.3s").runs[0])
    assert 0.3 <= timed["seconds"] < 3


def test_seconds_are_of_the_whole_sweep():
    planned = tiny(["mha", "linear", "gqa"], [SMALL, "copy:length=3"], budget="60s", workers=2)
    assert {run.seconds for run in planned.runs} == {20.0}


@pytest.mark.parametrize("name", ["mha", "gqa", "linear"])
def test_equal_parameters_mean_about_equal(name):
    task = task_of(SMALL)
    dim = width_for(60_000, name, task, "cs", heads=2, depth=2)
    found = parameters(Backbone(name, task, "cs", dim=dim, heads=2))
    assert abs(found / 60_000 - 1) < 0.15


def test_a_killed_run_goes_on_from_what_it_kept(tmp_path, monkeypatch):
    run, kept = tiny(budget="12steps").runs[0], tmp_path / "run.pt"
    whole = carry_out(run)
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)

    class Killed(Exception):
        pass

    def kill(share, progress):
        if progress.step == 6:
            raise Killed

    with pytest.raises(Killed):
        carry_out(run, kept=kept, told=kill)
    assert kept.exists()
    began = []
    again = carry_out(run, kept=kept, told=lambda share, p: began.append(p.step))
    assert began[0] > 5
    assert again["score"] == whole["score"]
    assert again["loss"] == whole["loss"]
    assert not kept.exists()


def test_a_damaged_state_begins_again(tmp_path):
    kept = tmp_path / "run.pt"
    kept.write_bytes(b"nonsense")
    assert carry_out(tiny().runs[0], kept=kept)["steps"] == 4
