"""The import closure of code: every module of Regard that a module can reach, and its hash."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from regard.papers.source import hash_of_tree

ROOT = Path(__file__).parents[1]
CHECKS = "regard.papers.checks"
# Files that are part of a check: its own, and what several of them measure with.
OWN = (f"{CHECKS}.", "regard.papers.shared.")
# What runs checks is not what they measure.
MACHINERY = "regard.papers"


def closure(names: Iterable[str]) -> frozenset[str]:
    """Find every module of the package that `names` import, at the top or within functions.

    A name taken from a package's face leads to the module that defines it, not to everything that
    the face offers.
    """
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached and _counts(name) and _file(name) is not None:
            reached.add(name)
            waiting.extend(_imports(name))
    return frozenset(reached)


def hash_of_closure(names: Iterable[str]) -> str:
    """Hash modules by what they say, whatever their order."""
    said = "\n".join(f"{name}={_hash(name)}" for name in sorted(set(names)))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def split(names: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Part a closure into the check with its helpers, and the code that it measures."""
    everything = frozenset(names)
    own = frozenset(name for name in everything if name.startswith(MACHINERY))
    return own, everything - own


def path_of(name: str) -> Path:
    """Return the file of a module of the package."""
    path = _file(name)
    assert path is not None, name
    return path


def forget() -> None:
    """Read every file again: for a process in which files change."""
    for cached in (_tree, _hash, _imports, _file):
        cached.cache_clear()


def _counts(name: str) -> bool:
    return not name.startswith(MACHINERY) or name.startswith(OWN)


@functools.cache
def _file(name: str) -> Path | None:
    top, *parts = name.split(".")
    if top != "regard":
        return None
    path = ROOT.joinpath(*parts)
    for found in (path.with_suffix(".py"), path / "__init__.py"):
        if parts and found.is_file():
            return found
    return None


@functools.cache
def _tree(name: str) -> ast.Module:
    path = _file(name)
    assert path is not None
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _hash(name: str) -> str:
    return hash_of_tree(_tree(name))


@functools.cache
def _imports(name: str) -> frozenset[str]:
    """Modules of the package that one module imports."""
    found = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(name, node)
            if origin.split(".")[0] == "regard":
                found |= {_home(origin, alias.name) for alias in node.names}
    return frozenset(one for one in found if one.split(".")[0] == "regard")


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    path = _file(name)
    assert path is not None
    parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _home(origin: str, name: str) -> str:
    """Find the module that `from origin import name` leads to."""
    if _file(f"{origin}.{name}") is not None:
        return f"{origin}.{name}"
    path = _file(origin)
    if path is not None and path.name == "__init__.py":
        for node in _tree(origin).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        source = _absolute(origin, node)
                        return source if source == origin else _home(source, alias.name)
    return origin
