"""Frozen values that are compared, hashed, printed and saved by what they say.

Rules are made of values. A value may hold numbers, text, tuples, other values, tensors and
functions. Two values are equal when they say the same; tensors are compared by content, hashed
by shape and dtype, and printed by shape.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import numpy as np
import torch
from torch import Tensor

from regard.core.errors import RegardError, RuleError, fail

T = TypeVar("T")
_TYPES: dict[str, type[Value]] = {}
# What `memo` built for values without tensors, oldest first.
_shared: OrderedDict[Hashable, Any] = OrderedDict()
_KEPT = 256


class Value:
    """A frozen value; subclasses are made with `@value`.

    >>> from regard.core.support import Causal, Window
    >>> Causal() & Window(4) == Causal() & Window(4)
    True
    >>> {Causal(): "the past"}[Causal()]
    'the past'
    """

    # Which axis of which tensor counts the query heads.
    _head_axis: ClassVar[dict[str, int]] = {}
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def fields(self) -> tuple[tuple[str, Any], ...]:
        """Name and content of each part, in order."""
        return tuple((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))

    def memo(self, key: Hashable, build: Callable[[], T]) -> T:
        """Build something derived from this value once, and keep it.

        Values without tensors share what equal values built; others keep it as long as they live.
        """
        if self.tensors():
            kept: OrderedDict[Hashable, Any] = self.__dict__.setdefault("_memo", OrderedDict())
            full_key: Hashable = key
        else:
            kept, full_key = _shared, (self, key)
        found = kept.get(full_key, _shared)
        if found is _shared:
            found = kept[full_key] = build()
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        return found  # type: ignore[no-any-return]

    @property
    def signature(self) -> Hashable:
        """What is left of the value when tensors are reduced to shape, dtype and device.

        Plans and compiled kernels depend on no more than this.
        """
        found = self.__dict__.get("_signature")
        if found is None:
            found = (type(self).__name__, *(_sign(x) for _, x in self.fields()))
            self.__dict__["_signature"] = found
        return found

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or self.signature != other.signature:
            return False
        return all(
            _same(a, b) for (_, a), (_, b) in zip(self.fields(), other.fields(), strict=True)
        )

    def __hash__(self) -> int:
        found = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = hash(self.signature)
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._said())})"

    def _said(self) -> list[str]:
        """Arguments worth printing: those that differ from their default."""
        said, positional = [], True
        for f in dataclasses.fields(self):
            x = getattr(self, f.name)
            if f.default is not dataclasses.MISSING and _same(x, f.default):
                positional = False
                continue
            said.append(
                _show(x) if positional and not isinstance(x, bool) else f"{f.name}={_show(x)}"
            )
        return said

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.fields())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor in the value, depth first."""
        found: tuple[Tensor, ...] | None = self.__dict__.get("_tensors")
        if found is None:
            found = tuple(t for _, x in self.fields() for t in _tensors(x))
            self.__dict__["_tensors"] = found
        return found

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Give the same value with other tensors, in the order of `tensors()`.

        They must be shaped as the old ones: nothing is checked again, so that this can be done
        while a graph is traced or recomputed.

        >>> from regard.core.score import Alibi
        >>> Alibi(torch.zeros(2)).with_tensors([torch.ones(2)]).slopes.tolist()
        [1.0, 1.0]
        """
        rest = iter(tensors)
        made = _swapped(self, rest)
        left = len(list(rest))
        if left:
            fail(
                RuleError,
                "tensors",
                f"{len(tensors)} tensors",
                f"{len(tensors) - left}, one for each of the value",
                "swap what tensors() gave",
            )
        return made  # type: ignore[no-any-return]

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Keep what belongs to some of the query heads."""
        changed: dict[str, Any] = {}
        for name, x in self.fields():
            axis = self._head_axis.get(name)
            if axis is not None and isinstance(x, Tensor) and x.shape[axis] > 1:
                changed[name] = x.index_select(axis, torch.tensor(heads, device=x.device))
            elif isinstance(x, Value):
                changed[name] = x.take_heads(heads)
            elif isinstance(x, tuple) and any(isinstance(y, Value) for y in x):
                changed[name] = tuple(y.take_heads(heads) for y in x)
        return self.replace(**changed) if changed else self

    def replace(self, **changes: Any) -> Self:
        """Make the same value with some parts changed."""
        return dataclasses.replace(self, **changes)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move every tensor to `device`, and floating ones to `dtype`."""
        return _moved(self, device, dtype)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """Write the value as JSON text; `from_json` reads it back.

        >>> from regard.core.support import Window
        >>> Value.from_json(Window(8).to_json())
        Window(8)
        """
        return json.dumps(_plain(self))

    @staticmethod
    def from_json(text: str) -> Any:
        """Read a value written by `to_json`."""
        try:
            made = _built(json.loads(text))
            if not isinstance(made, Value):
                raise ValueError("this is no value")
            return made
        except (
            *(json.JSONDecodeError, TypeError, ValueError, KeyError),
            *(AttributeError, ImportError, RuntimeError),
        ) as broken:
            if isinstance(broken, RegardError):
                raise
            raise RuleError(
                "text",
                f"{str(text)[:40]!r} ({broken})",
                "JSON written by to_json",
                "pass the text unchanged",
            ) from broken


@dataclass_transform(frozen_default=True)
def value(kind: type[T]) -> type[T]:
    """Make `kind` a frozen `Value` that can be saved under its class name."""
    made = dataclasses.dataclass(frozen=True, eq=False, repr=False)(kind)
    _TYPES[kind.__name__] = made  # type: ignore[assignment]
    return made


def _sign(x: Any) -> Hashable:
    if isinstance(x, Value):
        return x.signature
    if isinstance(x, Tensor):
        return (tuple(x.shape), x.dtype, x.device.type, x.requires_grad)
    if isinstance(x, tuple):
        return tuple(_sign(y) for y in x)
    return (type(x).__name__, x)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b.to(a.device)))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(type(a) is type(b) and a == b)


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Value):
        return list(x.tensors())
    if isinstance(x, tuple):
        return [t for y in x for t in _tensors(y)]
    return []


def _swapped(x: Any, rest: Iterator[Tensor]) -> Any:
    if isinstance(x, Tensor):
        found = next(rest, None)
        if found is None:
            fail(
                RuleError,
                "tensors",
                "too few tensors",
                "one for each of the value",
                "swap what tensors() gave",
            )
        return found
    if isinstance(x, tuple):
        return tuple(_swapped(y, rest) for y in x)
    if isinstance(x, Value) and x.tensors():
        made = object.__new__(type(x))
        made.__setstate__({name: _swapped(y, rest) for name, y in x.fields()})
        return made
    return x


def _moved(x: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
    if isinstance(x, tuple):
        return tuple(_moved(y, device, dtype) for y in x)
    if isinstance(x, Value) and x.tensors():
        return x.replace(**{name: _moved(y, device, dtype) for name, y in x.fields()})
    return x


def _show(x: Any) -> str:
    if isinstance(x, Tensor):
        kind = str(x.dtype).removeprefix("torch.")
        return f"<{kind} {'x'.join(map(str, x.shape)) or 'scalar'}>"
    if isinstance(x, tuple):
        inside = ", ".join(_show(y) for y in x)
        return f"({inside},)" if len(x) == 1 else f"({inside})"
    if callable(x) and not isinstance(x, Value):
        return getattr(x, "__qualname__", repr(x))
    return repr(x)


def _plain(x: Any) -> Any:
    """Reduce to what JSON can hold."""
    if isinstance(x, Value):
        return {"type": type(x).__name__, **{name: _plain(y) for name, y in x.fields()}}
    if isinstance(x, Tensor):
        flat = x.detach().cpu().contiguous()
        raw = flat.view(torch.uint8) if flat.dim() else flat.reshape(1).view(torch.uint8)
        return {
            "tensor": base64.b64encode(raw.numpy().tobytes()).decode(),
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": list(x.shape),
        }
    if isinstance(x, tuple):
        return {"tuple": [_plain(y) for y in x]}
    if x is None or isinstance(x, bool | int | float | str):
        return x if not isinstance(x, float) or np.isfinite(x) else {"float": repr(x)}
    if callable(x):
        name = f"{x.__module__}:{x.__qualname__}"
        if "<" in name or x.__module__ == "__main__":
            fail(
                RuleError,
                "test",
                f"the function {x.__qualname__}",
                "a function that can be imported by name",
                "define it at the top of a module",
            )
        return {"function": name}
    return fail(RuleError, "value", type(x).__name__, "a part that JSON can hold", "use a value")


def _built(x: Any) -> Any:
    if not isinstance(x, dict):
        return x
    if "tensor" in x:
        dtype, raw = getattr(torch, x["dtype"]), bytearray(base64.b64decode(x["tensor"]))
        if not raw:  # torch.frombuffer refuses an empty buffer
            return torch.empty(x["shape"], dtype=dtype)
        return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(x["shape"])
    if "tuple" in x:
        return tuple(_built(y) for y in x["tuple"])
    if "float" in x:
        return float(x["float"])
    if "function" in x:
        module, _, name = x["function"].partition(":")
        return getattr(importlib.import_module(module), name)
    kind = _TYPES.get(x.get("type", ""))
    if kind is None:
        fail(
            RuleError,
            "type",
            repr(x.get("type")),
            f"one of {', '.join(sorted(_TYPES))}",
            "import the module that defines it first",
        )
    return kind(**{name: _built(y) for name, y in x.items() if name != "type"})
