"""Tests run in a random order that its seed repeats; files stay together."""

import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.orders import in_order

ROOT = Path(__file__).resolve().parents[1]
FILES = ["tests/core/test_prefix.py", "tests/core/test_scan_state.py"]


@dataclass(frozen=True)
class Named:
    path: Path
    name: str


def test_a_seed_gives_an_order_of_its_own():
    plain = [Named(Path(file), f"{i}") for file in "abc" for i in range(9)]
    once, again, other = (in_order(plain, seed) for seed in (1, 1, 2))
    assert once == again
    assert set(plain) == set(once) == set(other)
    assert len({tuple(x) for x in (plain, once, other)}) == 3
    for found in (once, other):
        assert len(list(groupby(found, lambda test: test.path))) == 3


def test_the_option_gives_the_order_of_its_seed():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, "--order-seed", "1", *FILES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line for line in found.stdout.splitlines() if "::" in line]
    assert len(list(groupby(names, lambda name: name.split("::")[0]))) == len(FILES)
    assert any(lines(file, names) != sorted(lines(file, names)) for file in FILES)


def lines(file: str, names: list[str]) -> list[int]:
    """Where the tests of a file stand in it, in the order in which they run."""
    source = (ROOT / file).read_text(encoding="utf-8")
    own = [x.split("::")[1].split("[")[0] for x in names if x.startswith(file)]
    assert own
    return [source.index(f"def {name}(") for name in dict.fromkeys(own)]
