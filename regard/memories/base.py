"""The protocol of memories of keys and values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, DtypeError, ShapeError, fail, shape_of
from regard.core.keys import Dense, Keys
from regard.core.spans import Spans


class KeyMemory(ABC):
    """Keys and values of the tokens seen so far, or some of them.

    `seen` counts the tokens so far, kept or not: the position of the next query.
    """

    seen: int = 0

    @abstractmethod
    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append k [b, g, n, d] and v [b, g, n, e]; `keep` [b, n] is false at padding."""

    @abstractmethod
    def keys(self) -> Keys:
        """Return the kept keys and values, in the form that they are stored in."""

    def read(self) -> Dense:
        """Return `keys()` as tensors: k [b, g, m, d], v [b, g, m, e], positions."""
        return self.keys().dense()

    @abstractmethod
    def forget(self, horizon: Spans) -> None:
        """Drop keys that no later query can attend to: positions outside `horizon`."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens."""

    def check_crop(self, length: int) -> None:
        """Raise unless `crop(length)` is possible; change nothing."""
        return

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Continue row i of the batch from row `rows[i]`, as in beam search."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of every tensor held, tables and positions included."""

    @property
    def file_bytes(self) -> int:
        """Bytes held in files, beside `nbytes`."""
        return 0

    def choose(self, slots: Tensor) -> None:
        """Keep the slots [b, g, c] of `keys()`, in order, -1 for none; evict the others."""
        fail(
            CapabilityError, "memory", f"{type(self).__name__}, which keeps a fixed set",
            "a memory that can evict single keys", "use regard.memories.Kept",
        )  # fmt: skip

    def settle(self) -> None:
        """Compress or compact keys after attention has read them; does nothing by default."""
        return

    def repeat(self, times: int, batch: int) -> None:
        """Repeat each row of a batch, for beams or several samples."""
        self.reorder(torch.arange(batch).repeat_interleave(times))

    def state(self) -> dict[str, Any]:
        """Return the state for a file: tensors, numbers, lists and dicts of these."""
        fail(
            CapabilityError, "memory", f"a {type(self).__name__}", "a memory that has a state",
            "save a Kept, a Ring or a Paged",
        )  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        self.state()


def need_keys(k: Tensor, v: Tensor, keep: Tensor | None) -> None:
    """Raise unless the shapes of k, v and keep agree."""
    if keep is None and type(k) is Tensor and type(v) is Tensor:  # as at every step of decoding
        a, b = k.shape, v.shape
        if len(a) == 4 == len(b) and a[:3] == b[:3]:
            return
    for name, x in (("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.dim() != 4:
            fail(ShapeError, name, shape_of(x), "a tensor [b, g, n, d]", "split the heads first")
    if k.shape[:3] != v.shape[:3]:
        fail(
            ShapeError, "v", f"{list(v.shape)}", f"{list(k.shape[:3])} and its own head size",
            "pass a value for every key",
        )  # fmt: skip
    if keep is None:
        return
    if not isinstance(keep, Tensor) or list(keep.shape) != [k.shape[0], k.shape[2]]:
        fail(
            ShapeError, "keep", shape_of(keep), f"[{k.shape[0]}, {k.shape[2]}]",
            "mark each token as real or padding",
        )  # fmt: skip
    if keep.dtype is not torch.bool:
        fail(DtypeError, "keep", f"{keep.dtype}", "bool", "pass mask.bool()")


def extended_positions(
    at: Tensor | None, seen: int, k: Tensor, keep: Tensor | None, dtype: torch.dtype = torch.long
) -> Tensor | None:
    """Return the positions [b, seen + n] of all tokens once k [b, g, n, d] is appended.

    -1 at padding; None while no token has been padding, so that key j is at j. `at` are those of
    the `seen` tokens before.

    >>> k, keep = torch.zeros(1, 1, 2, 4), torch.tensor([[False, True]])
    >>> extended_positions(None, 1, k, keep)
    tensor([[ 0, -1,  2]])
    """
    if at is None and (keep is None or bool(keep.all())):
        return None
    b, n = k.shape[0], k.shape[2]
    line = torch.arange(seen + n, dtype=dtype, device=k.device)
    old = line[:seen].expand(b, -1) if at is None else at
    new = line[seen:].expand(b, n)
    return torch.cat((old, new if keep is None else torch.where(keep, new, -1)), 1)


def need_same_heads(k: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raise unless k has the batch and heads of earlier keys, if there are any."""
    if shape is not None and tuple(k.shape[:2]) != tuple(shape):
        fail(
            ShapeError, "k", f"batch and heads {list(k.shape[:2])}", f"{list(shape)}, as before",
            "start a new memory",
        )  # fmt: skip


def need_slots(slots: Tensor, shape: tuple[int, int] | None) -> None:
    """Raise unless slots [b, g, c] are of the rows and heads of a memory."""
    if shape is None or slots.dim() != 3 or slots.shape[:2] != shape:
        fail(
            ShapeError, "slots", list(slots.shape), f"[b, g, c] with {shape}",
            "choose slots for every row and head",
        )  # fmt: skip
