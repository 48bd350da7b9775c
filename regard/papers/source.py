"""A hash of what code does, blind to comments, docstrings, formatting and words of errors.

It is the same on every version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap
from typing import Any


def hash_of_text(text: str) -> str:
    """Hash Python source by what it says.

    >>> hash_of_text("x = 1  # one") == hash_of_text("x=1")
    True
    >>> hash_of_text("x = 1") == hash_of_text("x = 2")
    False
    >>> hash_of_text("raise ValueError('no')") == hash_of_text("raise ValueError('not this')")
    True
    """
    return hash_of_tree(ast.parse(textwrap.dedent(text)))


def hash_of_tree(tree: ast.Module) -> str:
    """Hash a module that was parsed already."""
    return hashlib.sha256(_said(tree).encode()).hexdigest()[:16]


def _said(node: Any, *, raised: bool = False) -> str:
    """Write a syntax tree so that equal programs give equal text on every Python.

    `ast.dump` and `ast.unparse` differ between Python versions; node types and filled fields
    do not. What is raised says its type and what it is made of, without the words around it: an
    error that reads better changes no number.
    """
    if isinstance(node, list):
        return f"[{','.join(_said(one, raised=raised) for one in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if raised and isinstance(node, ast.JoinedStr | ast.Constant) and _is_text(node):
        return "words"
    fields = []
    for name, content in ast.iter_fields(node):
        if name == "body" and isinstance(content, list) and _is_docstring(node, content):
            content = content[1:]
        if content in (None, []) or name in ("ctx", "type_comment", "kind"):
            continue
        fields.append(f"{name}={_said(content, raised=raised or isinstance(node, ast.Raise))}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node: ast.AST, body: list[ast.stmt]) -> bool:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    first = body[0] if body and isinstance(node, documented) else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )


def _is_text(node: ast.JoinedStr | ast.Constant) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node.value, str)
