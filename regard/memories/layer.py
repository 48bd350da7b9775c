"""Everything that one layer keeps between calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor

from regard.core.errors import RuleError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.memories.base import KeyMemory
from regard.memories.key_makers import KeyMaker

T = TypeVar("T")


class LayerMemory:
    """What a layer keeps between calls: memories of keys, scan states and tensors, by name.

    Built by `layer.memory()`, for that layer only. `seen` counts the tokens so far. The first axis
    of every tensor is the batch.

    >>> import torch
    >>> memory = LayerMemory("a layer")
    >>> memory.keep("tail", torch.zeros(2, 3))
    >>> memory.get("tail").shape, memory.nbytes
    (torch.Size([2, 3]), 24)
    """

    def __init__(self, of: str, layer: object | None = None) -> None:
        self.of = of
        self.seen = 0
        # The batch size, and whether it keeps a context, once a token was seen.
        self.batch: int | None = None
        self.crosses: bool | None = None
        # The maker of memories of keys; None where layers build their own.
        self.keys: KeyMaker | None = None
        self._layer = None if layer is None else weakref.ref(layer)
        self._parts: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return what is kept under a name, None where there is nothing yet."""
        return self._parts.get(name)

    def keep(self, name: str, x: Any) -> None:
        """Keep x under a name, in place of what was there."""
        self._parts[name] = x

    def of_kind(self, name: str, make: Callable[[], T]) -> T:
        """Return what is kept under a name, built on first use."""
        if name not in self._parts:
            self._parts[name] = made = make()
            if isinstance(made, LayerMemory) and made.keys is None:
                made.keys = self.keys
        found: T = self._parts[name]
        return found

    def settle(self) -> None:
        """Compact keys after attention has read them."""
        for x in self._parts.values():
            if isinstance(x, KeyMemory):
                x.settle()

    def serves(self, of: str, layer: object) -> bool:
        """Return whether this memory was built by that layer, or loaded for an equal one."""
        made_by = None if self._layer is None else self._layer()
        return self.of == of and (made_by is None or made_by is layer)

    def reorder(self, rows: Tensor) -> None:
        """Continue row i of the batch from row `rows[i]`, as in beam search."""
        for name, x in self._parts.items():
            if isinstance(x, KeyMemory | LayerMemory):
                x.reorder(rows)
            else:
                self._parts[name] = _mapped(x, lambda t: take_batch(t, rows))
        self.batch = len(rows)

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens; memories of keys can, states cannot."""
        if not 0 <= length <= self.seen:
            fail(ValueRangeError, "length", length, f"0 to {self.seen}", "crop to what was seen")
        for name, x in self._parts.items():
            if not isinstance(x, KeyMemory | LayerMemory):
                fail(
                    RuleError, "memory", f"{name!r} of {self.of}, a running state",
                    "memories of keys alone",
                    "copy the memory before (copy.deepcopy), and continue from the copy",
                )  # fmt: skip
            x.crop(length)
        self.seen = length

    def detach(self) -> None:
        """Cut the gradient history, as truncated backpropagation through time does."""
        for name, x in self._parts.items():
            if isinstance(x, LayerMemory):
                x.detach()
            elif not isinstance(x, KeyMemory):
                self._parts[name] = _mapped(x, Tensor.detach)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(
            x.nbytes
            if isinstance(x, KeyMemory | LayerMemory)
            else sum(t.nbytes for t in _tensors(x))
            for x in self._parts.values()
        )

    def __repr__(self) -> str:
        return f"LayerMemory({self.of}: {self.seen} tokens, {self.nbytes} bytes)"

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerMemory:
        made = LayerMemory(self.of)
        made.seen, made.batch, made.crosses = self.seen, self.batch, self.crosses
        made._layer, made.keys = self._layer, self.keys
        made._parts = {name: deepcopy(x, memo) for name, x in self._parts.items()}
        return made

    def __getstate__(self) -> dict[str, Any]:
        # A file has no layer: a loaded memory serves one equal to the layer that built it.
        return {**self.__dict__, "_layer": None, "keys": None}


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        for y in x.values():
            yield from _tensors(y)
    elif isinstance(x, tuple | list):
        for y in x:
            yield from _tensors(y)
    elif hasattr(x, "tensors"):
        yield from x.tensors().values()


def _mapped(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, dict):
        return {name: _mapped(y, change) for name, y in x.items()}
    if isinstance(x, tuple | list):
        return type(x)(_mapped(y, change) for y in x)
    if hasattr(x, "tensors"):
        return type(x)(**{name: change(t) for name, t in x.tensors().items()})
    return x
