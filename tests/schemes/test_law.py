"""Many ranks equal one: outputs, log-sum-exps, gradients, bytes; as threads, and as processes."""

import os
from pathlib import Path
from typing import Any

import pytest

from regard.schemes import SCHEMES
from regard.schemes.local_processes import Job, function_of, launch

CASES = Path(__file__).parent / "cases.py"
# Cases of each number of ranks: as threads, and as processes.
THREADS, PROCESSES = {"quick": (5, 10), "nightly": (120, 200)}.get(
    os.environ.get("HYPOTHESIS_PROFILE", ""), (20, 15)
)


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_many_ranks_equal_one(world: int) -> None:
    seeds = range(10_000 * world, 10_000 * world + THREADS)
    wrong = function_of(f"{CASES}:run_in_threads")(seeds, world)
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:10])


@pytest.fixture(scope="module")
def processes() -> dict[int, Any]:
    worlds = (2, 3, 4, 8)
    many = {w: max(len(SCHEMES), PROCESSES // (1 if w < 8 else 2)) for w in worlds}
    jobs = [Job(w, f"{CASES}:run_cases", (1000 * w, many[w]), timeout=1500) for w in worlds]
    return dict(zip(worlds, launch(jobs), strict=True))


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_many_processes_equal_one(world: int, processes: dict[int, Any]) -> None:
    for one in processes[world]:
        assert one.code == 0, one.errors[-3000:]
        wrong = one.result["wrong"]
        assert not wrong, f"{one.result['many']} differ:\n" + "\n".join(wrong[:10])
        assert set(one.result["ran"]) == set(SCHEMES)
