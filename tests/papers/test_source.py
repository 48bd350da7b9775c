"""A hash changes with what code says, and with nothing else."""

import importlib
import sys

import pytest

from regard.papers.source import hash_of_function, hash_of_modules, hash_of_text

PLAIN = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "same",
    [
        "def f(x): return x + 1",
        '"""Module."""\ndef f(x):\n    """Say."""\n    return x + 1  # why\n',
        "def f(\n    x,\n):\n    return (x + 1)\n",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(same):
    assert hash_of_text(same) == hash_of_text(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(x=None):\n    return x + 1\n",
        "def g(x):\n    return x + 1\n",
        "@wrap\ndef f(x):\n    return x + 1\n",
        "async def f(x):\n    return x + 1\n",
        "def f(x):\n    'not a docstring' + x\n    return x + 1\n",
    ],
)
def test_what_code_says_counts(other):
    assert hash_of_text(other) != hash_of_text(PLAIN)


FILE = """
import math
BOUND = {bound}
def helper(x): return x * {factor}
class Keeper:
    def keep(self): return deeper()
def deeper(): return {deep}
def check(): return [helper(y) < BOUND for y in (1, math.pi)], Keeper()
def neighbor(): return {other}
"""


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """Write a module with the given numbers in it, and hash its check and the whole of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(**changes):
        numbers = {"bound": 1, "factor": 2, "deep": 3, "other": 4, **changes}
        name = "hashed_" + "_".join(map(str, numbers.values()))
        (tmp_path / f"{name}.py").write_text(FILE.format(**numbers))
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        return hash_of_function(module.check), name

    return make


@pytest.mark.parametrize("part", ["bound", "factor", "deep"])
def test_a_check_includes_the_helpers_and_constants_it_reaches(hashed, part):
    assert hashed(**{part: 9})[0] != hashed()[0]


def test_a_check_does_not_include_its_neighbors(hashed):
    assert hashed(other=9)[0] == hashed()[0]


def test_a_module_includes_everything_in_it(hashed):
    first, second = hashed()[1], hashed(other=9)[1]
    both = hash_of_modules([first, second])
    assert both == hash_of_modules([second, first, second])
    assert both != hash_of_modules([first])
