"""What a function reaches: the tensors and settings that its answer depends on.

A rule may hold a function of the caller's. Its answer can depend on tensors in its closure, its
defaults, the globals it names, the object that it is a method of, a `functools.partial` or a
`torch.nn.Module`. Gradients and everything that is kept for later calls must know of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Objects looked at for one function; beyond that its surroundings are not its own.
MOST = 4096
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Reached(NamedTuple):
    """Tensors and plain settings within reach of a function, in the order they were found."""

    tensors: tuple[Tensor, ...]
    settings: tuple[Hashable, ...]


def reached(*functions: Callable[..., Any]) -> Reached:
    """Return the tensors and settings that some functions can read.

    >>> table = torch.ones(3)
    >>> def double(x): return x * table
    >>> reached(double).tensors[0] is table
    True
    >>> reached(functools.partial(torch.add, alpha=2)).settings
    (2,)
    """
    walk = _Walk()
    for function in functions:
        walk.visit(function, _names(function))
    return Reached(tuple(walk.tensors), tuple(walk.settings))


class _Walk:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.settings: list[Hashable] = []
        self.seen: set[int] = set()

    def visit(self, x: Any, names: frozenset[str]) -> None:
        """Look at x, and of an object at the attributes that the code names."""
        if isinstance(x, _PLAIN):
            self.settings.append(x)
            return
        if id(x) in self.seen or len(self.seen) >= MOST:
            return
        self.seen.add(id(x))
        for part, own in self._parts(x, names):
            self.visit(part, own)

    def _parts(self, x: Any, names: frozenset[str]) -> Iterable[tuple[Any, frozenset[str]]]:
        if isinstance(x, Tensor):
            self.tensors.append(x)
            return ()
        if isinstance(x, FunctionType):
            return ((part, _names(x)) for part in _of_function(x))
        if isinstance(x, MethodType):
            own = names | _names(x.__func__)
            return ((x.__func__, own), (x.__self__, own))
        if isinstance(x, functools.partial):
            return ((part, names) for part in (x.func, *x.args, *x.keywords.values()))
        if isinstance(x, dict):
            return ((part, names) for part in x.values())
        if isinstance(x, list | tuple | set | frozenset):
            return ((part, names) for part in x)
        if isinstance(x, torch.nn.Module):
            inside = (*x.parameters(), *x.buffers())
            return (*((t, names) for t in inside), *_named(x, names | _names(type(x).forward)))
        call = next((vars(c)["__call__"] for c in type(x).__mro__ if "__call__" in vars(c)), None)
        if not isinstance(x, type | ModuleType) and isinstance(call, FunctionType):
            own = names | _names(call)
            return ((call, own), *_named(x, own))
        return _named(x, names)


def _of_function(x: FunctionType) -> list[Any]:
    """Return the closure, defaults, and the globals that the code of a function names."""
    found: list[Any] = []
    for cell in x.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a cell that is not filled yet
            continue
    found += [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
    names = _names(x)
    return found + [x.__globals__[name] for name in sorted(names) if name in x.__globals__]


def _named(x: Any, names: frozenset[str]) -> list[tuple[Any, frozenset[str]]]:
    """Attributes of an object, a class or a module that the code names; nothing is computed."""
    if isinstance(x, ModuleType) and x.__name__.partition(".")[0] in ("torch", "math", "numpy"):
        return []
    inside: dict[str, Any] = {}
    for kind in reversed(x.__mro__ if isinstance(x, type) else type(x).__mro__):
        if kind.__module__ != "builtins":
            inside.update(vars(kind))
            for name in getattr(kind, "__slots__", ()):
                if name in names and hasattr(x, name) and not isinstance(x, type):
                    inside[name] = getattr(x, name)
    inside.update(getattr(x, "__dict__", {}))
    found: dict[str, Any] = {}
    while more := (names & inside.keys()) - found.keys():
        for name in more:
            part = inside[name]
            found[name] = part.fget if isinstance(part, property) else part
            names = names | _names(found[name])  # a method may name more of the same object
    return [(found[name], names) for name in sorted(found)]


def _names(x: Any) -> frozenset[str]:
    """Return every name in the code of a function, nested functions included."""
    code = getattr(getattr(x, "__func__", x), "__code__", None)
    return frozenset(_code_names(code)) if isinstance(code, CodeType) else frozenset()


def _code_names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for part in code.co_consts:
        if isinstance(part, CodeType):
            found |= _code_names(part)
    return found


class Stamp(NamedTuple):
    """A tensor as it was: the object, its version, its memory, and its contents if uncounted."""

    tensor: Tensor
    version: int
    memory: int
    copy: Tensor | None = None

    @staticmethod
    def of(x: Tensor) -> Stamp:
        """Record how a tensor is now. PyTorch counts no changes of inference tensors: these are
        copied.
        """
        if x.is_inference():
            return Stamp(x, 0, _memory(x), x.clone())
        return Stamp(x, x._version, _memory(x))

    def holds(self, x: Tensor) -> bool:
        """Return whether a tensor is the same one, with the same contents."""
        if x is not self.tensor or _memory(x) != self.memory:
            return False
        if self.copy is None:
            return not x.is_inference() and x._version == self.version
        return bool(torch.equal(x, self.copy))


def _memory(x: Tensor) -> int:
    # Traced and pretended tensors have no memory to speak of.
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta"
    try:
        return x.data_ptr() if plain else 0
    except RuntimeError:
        return 0
