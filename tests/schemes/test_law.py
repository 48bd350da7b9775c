"""Two, three and four processes equal one: outputs, log-sum-exps, gradients, bytes."""

import os
from pathlib import Path

import pytest

from regard.schemes.launch import results

HERE = Path(__file__).parent
# Cases of each number of processes.
MANY = {"quick": 20, "nightly": 340}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 35)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_many_processes_equal_one(world: int) -> None:
    found = results(world, f"{HERE / 'cases.py'}:run_cases", 1000 * world, MANY, timeout=1500)
    wrong = [line for one in found for line in one["wrong"]]
    assert not wrong, f"{sum(one['many'] for one in found)} differ:\n" + "\n".join(wrong[:10])
    assert set(found[0]["ran"]) == {"ring", "burst", "gather", "heads", "tree"}
