"""A benchmark says where its rounds are too few, or too far apart, to claim anything."""

from __future__ import annotations

import ast
import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# They write ratios of times themselves; the others have `side_by_side.compare` do it.
TIMED = sorted(
    path.name for path in BENCHMARKS.glob("*.py") if '"times_faster"' in path.read_text()
)


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("side_by_side")


def run(side_by_side: Any, capsys: Any, taken: list[float], rounds: int = 5) -> tuple[Any, str]:
    """Compare a call of one second with one that takes `taken`, round by round."""
    now = 0.0
    other = itertools.cycle(taken)

    def one() -> None:
        nonlocal now
        now += 1.0

    def two() -> None:
        nonlocal now
        now += next(other)

    rows = side_by_side.compare("case", {"one": one, "two": two}, rounds, clock=lambda: now)
    return rows, capsys.readouterr().out


def test_steady_rounds_claim_what_they_measure(side_by_side: Any, capsys: Any) -> None:
    rows, said = run(side_by_side, capsys, [0.5, 0.48, 0.52])
    assert "NO CLAIM" not in said
    assert [row["no_claim"] for row in rows] == ["", ""]
    assert rows[1]["rounds"] == 5


@pytest.mark.parametrize(
    ("taken", "rounds", "why"),
    [
        ([0.5, 0.9], 5, "rounds differ 1.8 times"),
        ([0.9, 1.1], 5, "rounds disagree which is faster"),
        ([0.5], 4, "4 rounds are fewer than 5"),
    ],
)
def test_a_spread_that_is_too_wide_is_said(
    side_by_side: Any, capsys: Any, taken: list[float], rounds: int, why: str
) -> None:
    rows, said = run(side_by_side, capsys, taken, rounds)
    assert rows[1]["no_claim"] == why
    assert f"NO CLAIM: {why}" in said.splitlines()[-1]


@pytest.mark.parametrize("name", TIMED)
def test_every_table_of_ratios_is_held_to_it(name: str) -> None:
    """Who writes a ratio of times, writes whether it claims anything."""
    tree = ast.parse((BENCHMARKS / name).read_text())
    names = {x.id for x in ast.walk(tree) if isinstance(x, ast.Name)}
    assert "no_claim" in names


def test_by_default_rounds_are_enough(side_by_side: Any) -> None:
    """No benchmark asks for fewer rounds than claim something, by default or by halving."""
    for path in sorted(BENCHMARKS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _text(node.args[:1]) == "--rounds":
                default = next(x.value for x in node.keywords if x.arg == "default")
                assert ast.literal_eval(default) >= side_by_side.ROUNDS, path.name
            halved = isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv)
            assert not (halved and "rounds" in ast.unparse(node.left)), path.name


def _text(found: list[ast.expr]) -> object:
    return found[0].value if found and isinstance(found[0], ast.Constant) else None
