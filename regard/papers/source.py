"""A hash of what code says, blind to comments, docstrings, formatting and the Python version."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


def hash_of_text(text: str) -> str:
    """Hash Python source by what it says.

    >>> hash_of_text("x = 1  # one") == hash_of_text("x=1")
    True
    >>> hash_of_text("x = 1") == hash_of_text("x = 2")
    False
    """
    return hash_of_tree(ast.parse(textwrap.dedent(text)))


def hash_of_tree(tree: ast.Module) -> str:
    """Hash a module that was parsed already."""
    return hashlib.sha256(_said(tree).encode()).hexdigest()[:16]


def hash_of_modules(names: list[str]) -> str:
    """Hash the modules `names` together; the order does not matter."""
    parts = []
    for name in sorted(set(names)):
        path = inspect.getsourcefile(sys.modules[name])
        text = Path(path).read_text(encoding="utf-8") if path else ""
        parts.append(f"{name}={hash_of_text(text)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def hash_of_function(function: Callable[..., Any]) -> str:
    """Hash a function with every helper and constant of its own module that it reaches.

    Other functions of the same file do not count, so a file may hold several checks.
    """
    module = sys.modules[function.__module__]
    reached: dict[str, str] = {}
    _reach(function.__name__, function, module, reached)
    text = "\n".join(f"{name}={said}" for name, said in sorted(reached.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reach(name: str, thing: Any, module: ModuleType, reached: dict[str, str]) -> None:
    if name in reached or isinstance(thing, ModuleType):
        return
    if inspect.isclass(thing) or inspect.isfunction(thing):
        if thing.__module__ != module.__name__:
            return  # its own module's claim or version answers for it
        reached[name] = hash_of_text(inspect.getsource(thing))
        functions = vars(thing).values() if inspect.isclass(thing) else [thing]
        for function in functions:
            if inspect.isfunction(function):
                for used in _names(inspect.unwrap(function).__code__):
                    if hasattr(module, used):
                        _reach(used, getattr(module, used), module, reached)
    elif isinstance(thing, bool | int | float | str | tuple | None):
        reached[name] = repr(thing)


def _names(code: CodeType) -> list[str]:
    """Global names that a code object reads, those of nested functions too."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [*code.co_names, *(name for c in inner for name in _names(c))]


def _said(node: Any) -> str:
    """Write a syntax tree so that equal programs give equal text on every Python.

    `ast.dump` and `ast.unparse` differ between Python versions; node types and filled fields
    do not.
    """
    if isinstance(node, list):
        return f"[{','.join(map(_said, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, content in ast.iter_fields(node):
        if name == "body" and isinstance(content, list) and _is_docstring(node, content):
            content = content[1:]
        if content in (None, []) or name in ("ctx", "type_comment", "kind"):
            continue
        fields.append(f"{name}={_said(content)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node: ast.AST, body: list[ast.stmt]) -> bool:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    first = body[0] if body and isinstance(node, documented) else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
