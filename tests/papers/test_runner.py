"""Checks run side by side; one that breaks breaks alone, and what is done is not done again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regard.core.errors import RegardError
from regard.papers import runner
from regard.papers.checks import checks
from regard.papers.evidence_files import load
from regard.papers.runner import choose, run

TOY = Path(__file__).with_name("toy_checks.py")
ROOT = TOY.parents[2]


def start(folder, jobs, keys, wait=0.0):
    """Start the toy program."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(TOY), str(folder), str(jobs), keys],
        env={**os.environ, "TOY_WAIT": str(wait), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(process):
    """Everything the toy program printed, by line, once it has ended."""
    said, _ = process.communicate(timeout=120)
    return said.splitlines()


def test_a_check_that_breaks_or_dies_breaks_alone(tmp_path):
    said = lines(start(tmp_path, 2, "mlkv,mhe,moh,mqa"))
    ended = {line.split()[1]: line for line in said if not line.startswith("started")}
    assert ended["moh"].startswith("done")
    assert ended["mqa"].startswith("done")
    assert ended["mhe"] == "broke mhe RuntimeError: on purpose"
    assert ended["mlkv"] == "broke mlkv its process died (exit code 9)"
    assert load("moh", tmp_path).held
    assert not load("mqa", tmp_path).held
    assert sorted(os.listdir(tmp_path)) == ["moh.json", "mqa.json"]


def test_an_interrupt_keeps_what_is_done_and_leaves_no_process(tmp_path):
    process = start(tmp_path, 2, "moh,titans", wait=300)
    said = []
    while not any(line.startswith("done moh") for line in said):
        said.append(process.stdout.readline())
        assert said[-1], f"ended early: {said}"
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = workers.read_text().split() if workers.exists() else []
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert lines(process)[-1] == "stopped"
    assert process.returncode == 130
    assert time.monotonic() - begun < 60  # and not the 300 s that the check would take
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        # Python's own tracker of shared resources ends a moment after its parent.
        assert time.monotonic() - begun < 60, "workers outlived the run"
        time.sleep(0.05)
    assert os.listdir(tmp_path) == ["moh.json"]


@pytest.fixture
def toys(monkeypatch):
    """Count how often toy checks of two rows run in this process."""
    ran = []

    def outcome(key):
        ran.append(key)
        return runner.Event(key, "broke", trace="toy")

    monkeypatch.setattr(runner, "_outcome", outcome)
    return ran


def test_rows_with_fresh_evidence_are_passed_by_unless_asked_again(toys, monkeypatch, tmp_path):
    judged = {"moh": "held", "mqa": "failed", "mhe": "stale", "mlkv": "none"}

    class Standing:
        evidence = None

        def __init__(self, verdict):
            self.verdict = verdict

    monkeypatch.setattr(runner, "standing", lambda key, _: Standing(judged[key]))
    events = [(event.what, event.key) for event in run(list(judged), folder=tmp_path)]
    assert toys == ["mhe", "mlkv"]
    assert events[:2] == [("fresh", "moh"), ("fresh", "mqa")]
    assert events[2:4] == [("started", "mhe"), ("broke", "mhe")]
    toys.clear()
    list(run(list(judged), again=True, folder=tmp_path))
    assert toys == list(judged)


def test_no_jobs_is_refused(tmp_path):
    with pytest.raises(RegardError, match="at least 1"):
        list(run([], jobs=0, folder=tmp_path))


def test_nothing_to_do_is_done_at_once(tmp_path):
    assert list(run([], jobs=4, folder=tmp_path)) == []


def test_choosing_checks(monkeypatch):
    quick = [key for key, one in checks().items() if not one.long]
    assert choose([]) == quick
    assert choose([quick[0], quick[0]]) == [quick[0]]
    with pytest.raises(RegardError, match="a row that has a check"):
        choose(["your_brain_on_chatgpt"])
    with pytest.raises(RegardError, match="a row of the catalogue"):
        choose(["nonsense"])
    made = checks()[quick[0]]
    long = type(made)(made.key, made.function, True)
    monkeypatch.setattr(runner, "checks", lambda: {made.key: long})
    assert choose([]) == []
    assert choose([], long=True) == [made.key]
    with pytest.raises(RegardError, match="add --long"):
        choose([made.key])
