"""What the committed runs of the fuzz say: nothing failed, and each target is one that there is."""

import json

from tests.scripts import script


def test_the_committed_runs_held():
    fuzz = script("scripts/fuzz.py")
    kept = json.loads(fuzz.KEPT.read_text())
    assert kept.keys() <= fuzz.targets().keys()
    for name, runs in kept.items():
        assert all(run["outcome"] == "held" for run in runs), name
        seeds = [run["seed"] for run in runs]
        assert len(seeds) == len(set(seeds)), f"{name}: one seed counted twice"
