"""What the committed runs of the fuzz say: nothing failed, and each target is one that there is."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_committed_runs_held():
    where = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
    fuzz = importlib.util.module_from_spec(where)
    where.loader.exec_module(fuzz)
    kept = json.loads(fuzz.KEPT.read_text())
    assert kept.keys() <= fuzz.targets().keys()
    for name, runs in kept.items():
        assert all(run["outcome"] == "held" for run in runs), name
        seeds = [run["seed"] for run in runs]
        assert len(seeds) == len(set(seeds)), f"{name}: one seed counted twice"
