"""Count what each registered layer adds: lines of its class that are code.

Blank lines, comments and docstrings do not count. The median must stay under 60.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from regard.layers.registry import get, names


def lines_of(kind: type) -> int:
    """Count the lines of code of a class."""
    source = inspect.getsource(kind)
    tree = ast.parse(source)
    told: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            text = node.body[0]
            told |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return sum(
        1
        for number, line in enumerate(source.splitlines(), 1)
        if number not in told and line.strip() and not line.strip().startswith("#")
    )


def counts() -> dict[str, int]:
    """Give the lines of every registered layer."""
    return {name: lines_of(get(name)) for name in names()}


def main() -> None:
    """Print the counts, largest first, and the median."""
    found = counts()
    for name, count in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"{count:4}  {name}")
    print(f"median {median(found.values()):g} of {len(found)} layers")


if __name__ == "__main__":
    main()
