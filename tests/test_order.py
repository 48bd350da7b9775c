"""Tests run in a random order that its seed repeats; files stay together."""

import subprocess
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ["tests/core/test_prefix.py", "tests/test_order.py", "tests/core/test_scan_state.py"]


def order(*options):
    """Collect some tests, and return their names as they would run."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         *options, *FILES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line for line in found.stdout.splitlines() if "::" in line]


def test_a_seed_gives_an_order_of_its_own():
    plain, once, again, other = order(), *(order("--order-seed", x) for x in ("1", "1", "2"))
    assert once == again
    assert sorted(plain) == sorted(once) == sorted(other)
    assert len({tuple(x) for x in (plain, once, other)}) == 3
    for found in (once, other):
        assert len(list(groupby(found, lambda name: name.split("::")[0]))) == len(FILES)
