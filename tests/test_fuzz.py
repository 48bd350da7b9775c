"""What the committed runs of the fuzz say: nothing failed, and each target is one that there is."""

import json
import subprocess

from tests.scripts import script


def test_the_committed_runs_held():
    fuzz = script("scripts/fuzz.py")
    kept = json.loads(fuzz.KEPT.read_text())
    assert kept.keys() <= fuzz.targets().keys()
    for name, runs in kept.items():
        assert all(run["outcome"] == "held" for run in runs), name
        seeds = [run["seed"] for run in runs]
        assert len(seeds) == len(set(seeds)), f"{name}: one seed counted twice"


def test_a_run_that_was_ended_from_outside_is_not_kept_as_failed(monkeypatch):
    fuzz = script("scripts/fuzz.py")
    ended = subprocess.CompletedProcess([], -15, stdout="", stderr="")
    monkeypatch.setattr(fuzz.subprocess, "run", lambda *_, **__: ended)
    assert fuzz.fuzz("a test", 1, 10, 1.0)["outcome"] == "ended by signal 15"
