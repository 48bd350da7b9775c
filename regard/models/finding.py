"""Find where a module attends by reading its bytecode; nothing is run."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Set
from functools import lru_cache
from typing import Any

from torch import nn

CALLED = {"scaled_dot_product_attention", "multi_head_attention_forward", "dispatch_attention_fn"}
PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}


def calls_attention(module: nn.Module) -> bool:
    """Return whether the code of a module, or of its processor, calls PyTorch's attention.

    >>> calls_attention(nn.MultiheadAttention(8, 2)), calls_attention(nn.Linear(2, 2))
    (True, False)
    """
    if isinstance(module, nn.MultiheadAttention):
        return True
    kinds: list[Any] = [type(module), type(getattr(module, "processor", None))]
    return any(_kind_calls(kind) for kind in kinds)


@lru_cache(maxsize=4096)
def _kind_calls(kind: Any) -> bool:
    return any(_code_calls(f, 2) for f in _own_functions(kind))


def main_input(model: Any, usual: str = "") -> str:
    """Return the name of a model's main input, the first where there are several.

    >>> main_input(nn.Linear(2, 2), "input_ids")
    'input_ids'
    """
    named = getattr(model, "main_input_name", usual)
    return str(named[0] if isinstance(named, list | tuple) and named else named)


def own_attention(model: nn.Module) -> list[str]:
    """Name the modules that seem to write attention out: products and a softmax in their code.

    A module called attention comes first, since a softmax may also be a router's.
    """
    found = []
    for path, module in model.named_modules():
        if weighs(module) and not calls_attention(module):
            called = _called_attention(path, module)
            found.append((not called, f"{path} ({type(module).__name__})".lstrip()))
    return [name for _, name in sorted(found, key=lambda x: x[0])]


def out_of_reach(model: nn.Module, sites: Set[str]) -> list[str]:
    """Name the modules called attention that have a softmax of their own, and are not sites.

    >>> class OwnAttention(nn.Module):
    ...     def forward(self, x): return (x @ x.mT).softmax(-1) @ x
    >>> both = nn.Sequential(nn.MultiheadAttention(8, 2), OwnAttention())
    >>> out_of_reach(both, {"0"})
    ['1 (OwnAttention)']
    """
    return [
        f"{path} ({type(module).__name__})".lstrip()
        for path, module in model.named_modules()
        if path not in sites and _attends_alone(path, module) and not calls_attention(module)
    ]


def _attends_alone(path: str, module: nn.Module) -> bool:
    """Return whether a class called attention has a softmax; by its path alone, products as well.

    Other modules under such a path (gates, mixers of streams) have a softmax without products.
    """
    if "attention" in type(module).__name__.lower():
        return _has_softmax(module)
    return _called_attention(path, module) and weighs(module)


def _has_softmax(module: nn.Module) -> bool:
    kind: Any = type(module)
    return _kind_has_softmax(kind)


@lru_cache(maxsize=4096)
def _kind_has_softmax(kind: Any) -> bool:
    return any("softmax" in n.lower() for f in _own_functions(kind) for n in _names(f))


def _names(function: Any) -> tuple[str, ...]:
    return getattr(getattr(function, "__code__", None), "co_names", ())


def _called_attention(path: str, module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "attn" in path.rsplit(".", 1)[-1].lower() or "attention" in name


def weighs(thing: object, by: Set[str] = frozenset()) -> bool:
    """Return whether the code of an object has products and a softmax, or calls one in `by`."""
    kind: Any = type(thing)
    return _kind_weighs(kind, frozenset(by))


@lru_cache(maxsize=4096)
def _kind_weighs(kind: Any, by: frozenset[str]) -> bool:
    return any(_weighs(f) or by & set(_names(f)) for f in _own_functions(kind))


def _own_functions(kind: type) -> Iterator[Any]:
    """Yield the functions of a class and its bases, without those of PyTorch."""
    for base in kind.__mro__:
        if base is not nn.Module and base.__module__.partition(".")[0] != "torch":
            yield from (inspect.unwrap(f) for f in vars(base).values() if inspect.isfunction(f))


def _code_calls(function: Any, depth: int) -> bool:
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if CALLED & set(code.co_names):
        return True
    inner = (function.__globals__.get(n) for n in code.co_names) if depth else ()
    return any(
        _code_calls(f, depth - 1)
        for f in inner
        if inspect.isfunction(f) and (f.__module__ or "").partition(".")[0] != "torch"
    )


def _weighs(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    if code is None or not any("softmax" in name.lower() for name in code.co_names):
        return False
    return bool(PRODUCTS & set(code.co_names)) or any(
        step.argrepr == "@" for step in dis.get_instructions(code)
    )
