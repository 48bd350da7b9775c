"""A sweep repeats no run: in one process or many, killed or not."""

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

from regard.bench import training
from regard.bench.records import read_record, record_path
from regard.bench.results import gathered
from regard.bench.run_locks import claim, stale
from regard.bench.sweep import carry_out_all, one
from regard.bench.training import carry_out
from tests.bench.tiny_sweeps import SMALL, tiny

ROOT = Path(__file__).parents[2]
SHELL = ["--dim", "16", "--heads", "2", "--batch", "8", "--no-speed", "--workers", "1"]


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


@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_numbers_of_processes(tmp_path):
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
