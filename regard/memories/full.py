"""Keep every key and value, or those that later queries can attend to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys, need_same_heads


class Full(KeyMemory):
    """Every key and value; `forget` drops those that no later query can attend to.

    Without gradients the tensors grow by half at a time and are written in place; the first ones
    belong to the caller, and are copied before a write.

    >>> memory = Full()
    >>> memory.extend(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    >>> memory.extend(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    >>> memory.seen, memory.read().k.shape, memory.read().positions
    (4, torch.Size([1, 2, 4, 4]), None)
    """

    def __init__(self) -> None:
        self.seen = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None
        # Positions [1 or b, kept], once they are no longer 0, 1, 2, ...
        self._positions: Tensor | None = None
        self._kept = 0
        # Whether the tensors may be written: the first ones belong to the caller.
        self._ours = False
        # Tokens seen when keys were last dropped: the memory cannot be cropped to before that.
        self._forgot_at = 0

    def extend(
        self, k: Tensor, v: Tensor, keep: Tensor | None = None, at: Tensor | None = None
    ) -> None:
        """Append n tokens; `at` [b, n] are their positions, if not consecutive, -1 for none.

        Once `at` was passed, it must be passed each time.
        """
        need_keys(k, v, keep)
        need_same_heads(k, None if self._k is None else self._k.shape[:2])
        n = k.shape[2]
        partly = at is not None or (keep is not None and not bool(keep.all()))
        if partly and self._positions is None:
            self._positions = torch.arange(self._kept, device=k.device)[None]
        if self._positions is not None:
            new = torch.arange(self.seen, self.seen + n, device=k.device)[None]
            new = new if at is None else at
            if keep is not None:
                new = torch.where(keep, new, -1)
            rows = max(len(self._positions), len(new))
            old = self._positions.expand(rows, -1)
            self._positions = torch.cat((old, new.expand(rows, -1)), dim=1)
        ours = self._k is not None
        self._k, self._v = self._with(self._k, k), self._with(self._v, v)
        self._ours = ours
        self._kept += n
        self.seen += n

    def _with(self, held: Tensor | None, new: Tensor) -> Tensor:
        if held is None:
            return new
        start, stop = self._kept, self._kept + new.shape[2]
        if new.requires_grad or held.requires_grad:
            return torch.cat((held[:, :, :start], new), dim=2)
        # A tensor made under inference mode can't be written outside of it, so it is copied.
        other = held.is_inference() != torch.is_inference_mode_enabled()
        if held.shape[2] < stop or other or not self._ours:
            room = held.new_empty(*held.shape[:2], stop + stop // 2, held.shape[3])
            room[:, :, :start] = held[:, :, :start]
            held = room
        held[:, :, start:stop] = new
        return held

    def keys(self) -> Dense:
        """Return all keys."""
        if self._k is None or self._v is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        return Dense(self._k[:, :, : self._kept], self._v[:, :, : self._kept], self._positions)

    def forget(self, horizon: Spans | Sequence[Spans]) -> None:
        """Drop positions outside `horizon`, once they are a third of the kept keys.

        Rows with their own positions may have a horizon each.
        """
        if self._k is None or self._v is None:
            return
        places = self._places()
        if isinstance(horizon, Spans):
            needed = horizon.holds(places.clamp_min(0)) & (places >= 0)
        else:
            rows = zip(horizon, places.expand(len(horizon), -1), strict=True)
            needed = torch.stack([one.holds(row.clamp_min(0)) & (row >= 0) for one, row in rows])
        keep = needed.any(0)
        if 3 * int(keep.sum()) > 2 * self._kept:
            return
        index = keep.nonzero()[:, 0]
        self._k, self._v = self._k.index_select(2, index), self._v.index_select(2, index)
        self._positions = torch.where(needed, places, -1)[:, index]
        self._kept, self._forgot_at = len(index), self.seen

    def _places(self) -> Tensor:
        if self._positions is not None:
            return self._positions
        assert self._k is not None
        return torch.arange(self._kept, device=self._k.device)[None]

    def crop(self, length: int) -> None:
        """Drop the tokens after the first `length`."""
        self.check_crop(length)
        if self._k is not None:
            # Columns are in order of arrival; padding in every row follows its neighbors.
            later = (self._places() >= length).any(0).nonzero()
            self._kept = int(later[0]) if len(later) else self._kept
            if self._positions is not None:
                self._positions = self._positions[:, : self._kept]
        self.seen = length

    def check_crop(self, length: int) -> None:
        """Raise if keys were dropped that earlier queries need."""
        if not 0 <= length <= self.seen:
            fail(ValueRangeError, "length", length, f"0 to {self.seen}", "crop to what was seen")
        if length < self._forgot_at:
            fail(
                CapabilityError, "length", length,
                f"at least {self._forgot_at}: keys that earlier queries need were dropped",
                "start a new memory",
            )  # fmt: skip

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        if self._k is not None and self._v is not None:
            self._k, self._v = take_batch(self._k, rows), take_batch(self._v, rows)
        if self._positions is not None and len(self._positions) > 1:
            self._positions = take_batch(self._positions, rows)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, room to grow included."""
        held = [x.untyped_storage() for x in (self._k, self._v, self._positions) if x is not None]
        # Keys and values may be views of one tensor.
        return sum({x.data_ptr(): x.nbytes() for x in held}.values())
