"""Checks run side by side; one that breaks breaks alone, and what is done is not done again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regard.core.errors import RegardError
from regard.papers import check_runner
from regard.papers.check_runner import choose, run
from regard.papers.checks import checks
from regard.papers.evidence_files import load

TOY = Path(__file__).with_name("toy_checks.py")
ROOT = TOY.parents[2]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Run five toy checks on two processes, and interrupt when the one that waits is alone.

    Gives the folder, the lines that were printed, the exit code, and how long stopping took.
    """
    folder = tmp_path_factory.mktemp("evidence")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(TOY), str(folder), "2", "mlkv,mhe,moh,mqa,titans"],
        env={**os.environ, "TOY_WAIT": "600", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = []
    while sum(not line.startswith("started") for line in said) < 4 or len(said) < 9:
        said.append(process.stdout.readline().strip())
        assert said[-1], f"ended early: {said}"
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = workers.read_text().split() if workers.exists() else []
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=580)
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        # Python's own tracker of shared resources ends a moment after its parent.
        assert time.monotonic() - begun < 580, "workers outlived the run"
        time.sleep(0.05)
    return folder, said + rest.splitlines(), process.returncode, time.monotonic() - begun


def test_a_check_that_breaks_or_dies_breaks_alone(stopped):
    ended = {line.split()[1]: line for line in stopped[1][:9] if not line.startswith("started")}
    assert ended == {
        "moh": "done moh",
        "mqa": "done mqa",
        "mhe": "broke mhe RuntimeError: on purpose",
        "mlkv": "broke mlkv its process died (exit code 9)",
    }


def test_an_interrupt_ends_every_process_and_keeps_what_is_done(stopped):
    folder, said, code, seconds = stopped
    assert (said[-1], code) == ("stopped", 130)
    assert seconds < 580  # and not the 600 s that the last check would take
    assert sorted(os.listdir(folder)) == ["moh.json", "mqa.json"]
    assert load("moh", folder).held
    assert not load("mqa", folder).held


def test_an_interrupt_that_ends_no_wait_is_seen(tmp_path):
    """A signal may come just before a wait begins: it is noted, and the wait goes on."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(TOY), str(tmp_path), "2", "titans,moh"],
        env={
            **os.environ, "TOY_WAIT": "600", "TOY_INTERRUPT": "done moh", "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert (ended.stdout.splitlines()[-1], ended.returncode) == ("stopped", 130)
    assert time.monotonic() - begun < 580


@pytest.fixture
def toys(monkeypatch):
    """Count how often toy checks of two rows run in this process."""
    ran = []

    def outcome(key, seeds, of=None):
        ran.append(key)
        return check_runner.Event(key, "broke", trace="toy")

    monkeypatch.setattr(check_runner, "_outcome", outcome)
    return ran


def test_rows_with_fresh_evidence_are_passed_by_unless_asked_again(toys, monkeypatch, tmp_path):
    judged = {"moh": "held", "mqa": "failed", "mhe": "stale", "mlkv": "none"}

    class Standing:
        evidence = None

        def __init__(self, verdict):
            self.fresh = verdict in ("held", "failed")

    monkeypatch.setattr(check_runner, "standing", lambda key, _: Standing(judged[key]))
    events = [(event.what, event.key) for event in run(list(judged), folder=tmp_path)]
    assert toys == ["mhe", "mlkv"]
    assert events[:2] == [("fresh", "moh"), ("fresh", "mqa")]
    assert events[2:4] == [("started", "mhe"), ("broke", "mhe")]
    toys.clear()
    list(run(list(judged), again=True, folder=tmp_path))
    assert toys == list(judged)


def test_other_seeds_are_measured_and_not_kept(monkeypatch, tmp_path):
    from types import SimpleNamespace

    found = SimpleNamespace(key="moh")
    monkeypatch.setattr(
        check_runner, "standing", lambda *_: SimpleNamespace(fresh=True, evidence=found)
    )
    monkeypatch.setattr(check_runner, "measure", lambda key, seeds: found)
    kept = []
    monkeypatch.setattr(check_runner, "save", lambda evidence, folder: kept.append(evidence))
    events = [event.what for event in run(["moh"], folder=tmp_path, seeds=range(5, 15))]
    assert events == ["started", "done"]
    assert kept == []
    assert [event.what for event in run(["moh"], folder=tmp_path)] == ["fresh"]
    list(run(["moh"], folder=tmp_path, again=True))
    assert kept == [found]


def test_no_check_begins_after_the_budget(toys, tmp_path):
    assert list(run(["moh", "mqa"], folder=tmp_path, again=True, budget=0)) == []
    assert toys == []


def test_no_jobs_is_refused(tmp_path):
    with pytest.raises(RegardError, match="at least 1"):
        list(run([], jobs=0, folder=tmp_path))
    with pytest.raises(RegardError, match="at least one"):
        list(run([], seeds=(), folder=tmp_path))


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
    monkeypatch.setattr(check_runner, "checks", lambda: {made.key: long})
    assert choose([]) == []
    assert choose([], long=True) == [made.key]
    with pytest.raises(RegardError, match="add --long"):
        choose([made.key])
