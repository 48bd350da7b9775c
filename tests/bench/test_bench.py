"""Sweeps are fair, end when told, survive being killed, and say what went wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from regard.bench import records, training
from regard.bench.backbone import Backbone, parameters, width_for
from regard.bench.records import RECORD, BenchError, read_record, record_path
from regard.bench.results import gathered, read_folder, write_tables
from regard.bench.run_budget import RunBudget, read_budget
from regard.bench.run_locks import claim, stale
from regard.bench.specs import make_layer, read_spec, task_of, why_not
from regard.bench.sweep import carry_out_all, one, plan
from regard.bench.training import carry_out, seed_of
from regard.cli.bench import app
from regard.core.errors import CapabilityError, RegardError, RuleError
from regard.core.files import disk_errors, write_json
from regard.layers.registry import get
from regard.tasks import task as make_task

ROOT = Path(__file__).parents[2]
TINY = {"dim": 16, "heads": 2, "batch": 8}
SMALL = "induction:period=4:vocab=8"
SHELL = ["--dim", "16", "--heads", "2", "--batch", "8", "--no-speed", "--workers", "1"]


def tiny(layers=("mha",), tasks=(SMALL,), budget="4steps", **more):
    return plan(list(layers), list(tasks), budget=read_budget(budget), **{**TINY, **more})


def numbers(record):
    """What must be the same wherever and whenever a run is done."""
    curve = [(p["step"], p["loss"], p["score"]) for p in record["curve"]]
    return record["score"], record["loss"], record["tests"], curve, record["flops"]


# One run -------------------------------------------------------------------------


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


# Sweeps --------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated(tmp_path):
    planned = tiny(["mha", "linear"])
    first = [n.what for n in carry_out_all(planned, tmp_path) if n.what in ("done", "kept")]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    second = [n.what for n in carry_out_all(planned, tmp_path) if n.what in ("done", "kept")]
    assert first == ["done"] * 2
    assert second == ["kept"] * 2
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    assert not list((tmp_path / "claims").iterdir())


def test_a_sweep_killed_with_9_resumes_and_repeats_nothing(tmp_path):
    """Kill a sweep and its workers in the midst; the next one does what is left alone."""
    command = [
        sys.executable, "-m", "regard.cli", "bench", "mha", "linear", "--tasks", SMALL,
        "--seeds", "3", "--budget", "60steps", "--out", str(tmp_path), *SHELL,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    going = subprocess.Popen(
        command, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    runs = tmp_path / "runs"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (any(runs.glob("[!.]*.json"))):
        time.sleep(0.02)
    os.killpg(going.pid, signal.SIGKILL)
    going.wait()
    done = {p.name: p.read_bytes() for p in runs.glob("*.json") if not p.name.startswith(".")}
    assert 0 < len(done) < 6
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    after = {p.name: p.read_bytes() for p in runs.glob("*.json")}
    assert len(after) == 6
    assert all(after[name] == text for name, text in done.items())
    assert ended.stderr.count("kept ") == len(done)
    assert not list((tmp_path / "claims").iterdir())


def test_two_workers_on_one_folder_do_each_run_once(tmp_path):
    planned = tiny(["mha", "linear", "gqa"], seeds=2)
    told = {"a": [], "b": []}

    def work(name, order):
        for run in order:
            told[name].append(one(run, tmp_path))

    threads = [
        threading.Thread(target=work, args=("a", planned.runs)),
        threading.Thread(target=work, args=("b", planned.runs[::-1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = told["a"] + told["b"]
    assert outcomes.count("done") == 6
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6
    for run in planned.runs:
        assert read_record(record_path(tmp_path, run))["key"] == run.key


def test_a_layer_whose_code_changed_is_trained_again(tmp_path, monkeypatch):
    """What was measured by other code is neither handed out nor lost."""
    home = tmp_path / "own_package"
    home.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "from regard.layers.attention import Attention\nclass Own(Attention):\n    'x'\n"
    (home / "layers.py").write_text(code)
    run = tiny(["own_package.layers:Own"]).runs[0]
    assert [one(run, tmp_path), one(run, tmp_path)] == ["done", "kept"]
    (home / "layers.py").write_text(code.replace("'x'", "'another'"))
    assert [one(run, tmp_path), one(run, tmp_path)] == ["done", "kept"]
    with monkeypatch.context() as patched:
        patched.setattr("regard.bench.records.hash_of_code", lambda: "of another Regard")
        assert one(run, tmp_path) == "done"
        assert read_record(record_path(tmp_path, run))["inputs"]["code"] == "of another Regard"
        assert gathered(tiny(["own_package.layers:Own"]), tmp_path).records == ()
    assert len(list((tmp_path / "runs" / "older").iterdir())) == 2


def test_what_a_killed_run_of_other_code_kept_is_not_used(tmp_path, monkeypatch):
    run, kept = tiny().runs[0], tmp_path / "x.pt"
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)
    steps = []

    def stop(share, progress):
        steps.append(progress.step)
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(run, kept=kept, told=stop)
    with monkeypatch.context() as patched:
        patched.setattr("regard.bench.records.hash_of_code", lambda: "another")
        with pytest.raises(KeyboardInterrupt):
            carry_out(run, kept=kept, told=stop)
    carry_out(run, kept=kept, told=lambda _, progress: steps.append(progress.step))
    assert steps == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]


def test_processes_give_the_numbers_of_one_process(tmp_path):
    planned = tiny(["mha", "linear"], seeds=2)
    here = [carry_out(run) for run in planned.runs]
    assert all(n.what != "broke" for n in carry_out_all(planned, tmp_path, workers=2))
    for run, record in zip(planned.runs, here, strict=True):
        far = read_record(record_path(tmp_path, run))
        assert (far["score"], far["loss"]) == (record["score"], record["loss"])


def test_ray_gives_the_numbers_of_processes(tmp_path):
    pytest.importorskip("ray")
    from regard.bench.on_ray import carry_out_on_ray

    planned = tiny(["mha", "linear"])
    assert [n.what for n in carry_out_on_ray(planned, tmp_path)].count("done") == 2
    for run in planned.runs:
        far, here = read_record(record_path(tmp_path, run)), carry_out(run)
        assert (far["score"], far["loss"]) == (here["score"], here["loss"])


def test_a_broken_run_is_told_and_the_others_go_on(tmp_path):
    planned = tiny(["linear", "mha"], [SMALL])
    # 16 channels are not 3 heads. `plan` itself would refuse that before anything is run.
    wrong = replace(planned.runs[0], layer="mha:heads=3")
    planned = replace(planned, runs=(wrong, *planned.runs[1:]))
    news = list(carry_out_all(planned, tmp_path))
    assert [n.what for n in news].count("done") == 1
    broken = [n for n in news if n.what == "broke"]
    assert len(broken) == 1
    assert "Fix" in broken[0].trace


# Claims --------------------------------------------------------------------------


def test_one_of_many_wins_a_claim(tmp_path):
    won = []
    gate = threading.Barrier(8)

    def race():
        gate.wait()
        won.append(claim(tmp_path, "run"))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(x is not None for x in won) == 1


def test_a_claim_of_a_dead_process_is_taken_over_once(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = claim(tmp_path, "run")
    said = json.loads(ours.path.read_text())
    ours.path.write_text(json.dumps({**said, "pid": dead.pid}))
    assert stale(ours.path)
    taken, refused = claim(tmp_path, "run"), claim(tmp_path, "run")
    assert taken is not None
    assert refused is None
    assert not ours.mine()
    assert taken.mine()
    taken.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_of_another_machine_is_stale_when_nobody_touches_it(tmp_path):
    ours = claim(tmp_path, "run")
    said = json.loads(ours.path.read_text())
    ours.path.write_text(json.dumps({**said, "host": "elsewhere", "pid": 1}))
    assert not stale(ours.path, 60)
    os.utime(ours.path, (time.time() - 100,) * 2)
    assert stale(ours.path, 60)
    ours.touch()
    assert not stale(ours.path, 60)


def test_a_run_that_was_taken_over_does_not_write(tmp_path, monkeypatch):
    run = tiny().runs[0]
    monkeypatch.setattr("regard.bench.run_locks.RunLock.mine", lambda self: False)
    one(run, tmp_path)
    assert not record_path(tmp_path, run).exists()


# What goes wrong -----------------------------------------------------------------


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


# The shell -----------------------------------------------------------------------


def test_the_command_compares_and_writes_what_people_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    asked = ["mha", "linear", "--tasks", f"{SMALL},copy:length=3", "--budget", "3steps", "--json"]
    ran = CliRunner().invoke(app, [*asked, "--out", str(tmp_path), *SHELL])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert {x["layer"] for x in said["ranking"]} == {"mha", "linear"}
    table = pandas.read_parquet(tmp_path / "results.parquet")
    assert set(table["test"]) == {"induction", "copy", "3 words", "4 words", "6 words"}
    curves = pandas.read_parquet(tmp_path / "curves.parquet")
    assert set(curves["layer"]) == {"mha", "linear"}
    assert "default-src 'none'" in (tmp_path / "report.html").read_text()
    again = read_folder(tmp_path)
    assert again.budget == "3 steps a run"
    assert len(again.records) == again.planned == 4


def test_speed_is_measured_against_length(tmp_path):
    asked = ["speed", "mha", "linear", "--lengths", "16,32,64", "--dim", "16", "--heads", "2"]
    more = ["--executors", "fused", "--peers", "--rounds", "1", "--json", "--out", str(tmp_path)]
    ran = CliRunner().invoke(app, [*asked, *more])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    found = {(r["who"], r["what"]) for r in said["rows"]}
    assert ("executor fused", "backward") in found
    assert ("torch MultiheadAttention", "forward") in found
    kept = {(r["who"], r["what"]): r["memory exponent"] for r in said["exponents"]}
    assert abs(kept["mha", "decode"] - 1) < 0.01
    assert abs(kept["linear", "decode"]) < 0.01


def test_the_list_of_tasks_is_printed():
    ran = CliRunner().invoke(app, ["tasks", "--json"])
    assert "mqar" in {row["task"] for row in json.loads(ran.stdout)}


def test_tables_of_the_users_are_not_written_over(tmp_path):
    pandas = pytest.importorskip("pandas")
    list(carry_out_all(tiny(["mha"]), tmp_path))
    theirs = pandas.DataFrame({"x": [1]})
    theirs.to_parquet(tmp_path / "results.parquet")
    with pytest.raises(BenchError, match="a new name"):
        write_tables(read_folder(tmp_path), tmp_path)
    assert pandas.read_parquet(tmp_path / "results.parquet").equals(theirs)
    (tmp_path / "results.parquet").unlink()
    for _ in range(2):  # our own are replaced
        write_tables(read_folder(tmp_path), tmp_path)


def test_a_folder_without_a_sweep_is_said(tmp_path):
    with pytest.raises(RegardError, match="no sweep"):
        read_folder(tmp_path)


def test_tables_of_a_sweep_that_is_not_done_are_written(tmp_path):
    planned = tiny(["mha", "linear"])
    one(planned.runs[0], tmp_path)
    results = gathered(planned, tmp_path)
    assert (len(results.records), results.planned) == (1, 2)
    assert (tmp_path / "results.json") in write_tables(results, tmp_path)
