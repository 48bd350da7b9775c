"""Run 10,000 generated cases for each executor, and 10,000 damaged files for each reader.

    python scripts/fuzz.py [TARGET ...] [--seed N] [--cases N] [--minutes N]

Without targets all run. What each run did is kept in docs/fuzz.json as it ends: cases, seed,
seconds (by the clock, and of CPU), date and versions; one that fails is kept as failed, with the
seed that repeats it. Runs of fewer cases, with seeds of their own, add up; one that is not done in
time says nothing, and is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "fuzz.json"
EQUAL = "tests/run/test_executors_equal.py::test_equals_the_reference"
OF_KEYS = "tests/run/test_executors_of_keys.py::test_equals_the_reference_over_keys"
DAMAGE = "tests/test_damaged_files.py::test_damage_is_told_or_changes_nothing"


def targets() -> dict[str, str]:
    """Return the tests to run, by what they try."""
    sys.path.insert(0, str(ROOT))
    from tests.run.test_executors_equal import EXACT
    from tests.run.test_executors_of_keys import OF_KEYS as KEYED
    from tests.test_damaged_files import CASES as READERS

    executors = {f"executor {name}": f"{EQUAL}[{name}]" for name in EXACT}
    executors |= {f"executor {name}": f"{OF_KEYS}[{name}]" for name in KEYED}
    return executors | {f"reader {name}": f"{DAMAGE}[{name}]" for name in READERS}


def cpu_seconds() -> float:
    """Return what the processes that were waited for have used of the CPU."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fuzz(test: str, seed: int, cases: int, minutes: float) -> dict[str, object]:
    """Run one test with many cases in a process of its own; return what it did."""
    begun, spent = time.monotonic(), cpu_seconds()
    told = {"HYPOTHESIS_PROFILE": "fuzz", "REGARD_FUZZ_CASES": str(cases)}
    env = {**os.environ, **told, "REGARD_TEST_SEED": str(seed)}
    command = [
        sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider",
        "--hypothesis-show-statistics", f"--hypothesis-seed={seed}", test,
    ]  # fmt: skip
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60 * minutes,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"outcome": f"not finished in {minutes:g} minutes", "seed": seed}
    if ended.returncode < 0:  # from outside: it says nothing of the cases
        return {"outcome": f"ended by signal {-ended.returncode}", "seed": seed}
    counts = [int(x) for x in re.findall(r"(\d+) passing", ended.stdout)]
    invalid = [int(x) for x in re.findall(r"(\d+) invalid", ended.stdout)]
    held = ended.returncode == 0 and " passed" in ended.stdout
    found: dict[str, object] = {
        "outcome": "held" if held else "failed",
        "cases": sum(counts) if counts else cases,
        "seed": seed,
        "seconds": round(time.monotonic() - begun),
        "CPU seconds": round(cpu_seconds() - spent),
    }
    if counts:
        found["not for this executor"] = sum(invalid)
    if not held:
        print(ended.stdout[-4000:], ended.stderr[-2000:])
    return found


def main() -> None:
    """Run the targets one by one, and keep what each did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    given, known = parser.parse_args(), targets()
    unknown = sorted(set(given.targets) - set(known))
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are: {', '.join(known)}")
    import torch

    failed = False
    for name in given.targets or known:
        found = fuzz(known[name], given.seed, given.cases, given.minutes)
        if found["outcome"] not in ("held", "failed"):
            print(f"{name}: {found['outcome']}")
            failed = True
            continue
        found["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        found["python"], found["torch"] = platform.python_version(), torch.__version__
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        kept.setdefault(name, []).append(found)
        KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        print(f"{name}: {found['outcome']}, {found.get('cases', 0):,} cases")
        failed |= found["outcome"] != "held"
    sys.exit(failed)


if __name__ == "__main__":
    main()
