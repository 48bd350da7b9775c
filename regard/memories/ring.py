"""Sinks and a window, in a ring buffer of fixed size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense, Keys, Later, Unordered
from regard.core.rule import Rule
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.memories.base import KeyMemory, need_keys
from regard.memories.kept import Kept, need_crop

# A position far past any start, at which a rule's horizon is read.
FAR = 1 << 24


class Ring(KeyMemory):
    """The first `sinks` real tokens of each row, and the last `window` tokens.

    Beyond that length the window is a ring: token t overwrites token t - window, so a step costs
    the same at every length.

    >>> memory = Ring(window=4, sinks=1)
    >>> for t in range(9):
    ...     memory.extend(torch.full((1, 1, 1, 2), t), torch.full((1, 1, 1, 2), t))
    ...     memory.settle()
    >>> memory.read().positions.tolist(), memory.read().k[0, 0, :, 0].tolist()
    ([[0, 5, 6, 7, 8]], [0, 5, 6, 7, 8])
    """

    def __init__(self, window: int, sinks: int = 0) -> None:
        need_count("window", window)
        need_count("sinks", sinks, 0)
        self.window, self.sinks = window, sinks
        # All tokens, until they are more than sinks and window; then None.
        self._young: Kept | None = Kept()
        # k, v [b, g, sinks + window, d] and positions int32 [b, sinks + window]: sinks, then the
        # ring. A new chunk, with int64 positions, waits beside them until it has been read.
        self._held: list[Tensor] = []
        self._new: list[Tensor] = []
        # Whether every slot holds a real key, and every sink has left the window.
        self._full = False
        self._seen = 0

    @staticmethod
    def of(rule: Rule) -> Ring:
        """Build the ring that a rule needs, by the rule's horizon for late queries.

        >>> from regard.core.support import Causal, Sinks, Window
        >>> ring = Ring.of(Rule(Causal() & (Window(64) | Sinks(4))))
        >>> ring.window, ring.sinks
        (64, 4)
        """
        needed = rule.horizon(FAR).spans
        last = needed[-1] if needed else (0, None)
        if last[1] is not None or last[0] == 0 or len(needed) > 2 or (needed[:-1] and needed[0][0]):
            fail(
                CapabilityError, "rule", f"{rule}, whose late queries need {rule.horizon(FAR)}",
                "a rule that needs a window, and perhaps the first keys",
                "keep every key: regard.memories.Kept()",
            )  # fmt: skip
        sinks = needed[0][1] if len(needed) == 2 else 0
        assert sinks is not None
        return Ring(FAR + 1 - last[0], sinks)

    @property
    def seen(self) -> int:  # type: ignore[override]
        """The number of tokens seen."""
        return self._seen

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens: a single one goes into the ring, a chunk waits until `settle`."""
        need_keys(k, v, keep)
        if self._young is not None:
            self._young.extend(k, v, keep)
            self._seen += k.shape[2]
            return
        if self._new:
            self.settle()
        b, n = k.shape[0], k.shape[2]
        at = torch.arange(self._seen, self._seen + n, device=k.device).expand(b, n)
        if keep is not None and not bool(keep.all()):
            at, self._full = torch.where(keep, at, -1), False
        self._seen += n
        self._new = [k, v, at]
        if n == 1:
            self.settle()

    def settle(self) -> None:
        """Write new tokens to the ring, and drop what no later query can attend to."""
        if self._young is not None:
            if self._young.seen > self.window + self.sinks:
                self._start(self._young)
            return
        if not self._new:
            return
        k, v, at = self._new
        self._new = []
        if self.sinks and not self._full:
            self._sink(k, v, at)
        self._write(k, v, at)

    def _write(self, k: Tensor, v: Tensor, at: Tensor) -> None:
        """Write the last of the new tokens to the ring."""
        n = min(k.shape[2], self.window)
        if n == 1:
            slot = self.sinks + (self._seen - 1) % self.window
            for held, x, axis in zip(self._held, (k, v, at), (2, 2, 1), strict=True):
                held.narrow(axis, slot, 1).copy_(x.narrow(axis, x.shape[axis] - 1, 1))
        else:
            slots = torch.arange(self._seen - n, self._seen, device=k.device) % self.window
            for held, x, axis in zip(self._held, (k, v, at), (2, 2, 1), strict=True):
                new = x.narrow(axis, x.shape[axis] - n, n).to(held.dtype)
                held.index_copy_(axis, slots + self.sinks, new)
        if not self._full:
            at = self._held[2]
            left = at[:, : self.sinks] < self._seen - self.window
            self._full = bool((at >= 0).all()) and bool(left.all())

    def _sink(self, k: Tensor, v: Tensor, at: Tensor) -> None:
        """Write new tokens to the sinks of rows that have seen fewer real tokens than sinks."""
        first = self._held[2][:, : self.sinks]
        have = (first >= 0).sum(1, keepdim=True)  # all that the row has seen, in order
        place = have + (at >= 0).cumsum(1) - 1
        rows, tokens = ((at >= 0) & (place < self.sinks)).nonzero(as_tuple=True)
        slots = place[rows, tokens]
        for held, x in zip(self._held, (k, v), strict=False):
            held[rows, :, slots] = x[rows, :, tokens]
        self._held[2][rows, slots] = at[rows, tokens].to(torch.int32)

    def _start(self, young: Kept) -> None:
        """Start the ring: sinks are the first real tokens of each row."""
        read = young.read()
        b, _, m = read.k.shape[:3]
        at = torch.arange(m, device=read.k.device).expand(b, m)
        at = at if read.positions is None else read.positions[:, 0]
        order = torch.where(at >= 0, at, m + 1).sort(1)
        slots = order.indices[:, : self.sinks]
        first = torch.where(order.values[:, : self.sinks] <= m, at.gather(1, slots), -1)
        room = self.sinks + self.window
        self._held = [x.new_zeros(*x.shape[:2], room, x.shape[3]) for x in (read.k, read.v)]
        self._held.append(torch.full((b, room), -1, dtype=torch.int32, device=at.device))
        for held, x in zip(self._held, (read.k, read.v), strict=False):
            index = slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            held[:, :, : self.sinks] = x.gather(2, index)
        self._held[2][:, : self.sinks] = first
        self._young = None
        self._write(read.k, read.v, at)

    def keys(self) -> Keys:
        """Return sinks and ring as they are stored, once both are full; before that, in order."""
        if self._young is not None:
            read = self._young.read()
            at = read.positions
            return Dense(read.k, read.v, None if at is None else at[:, 0])
        if self._full and not self._new:
            k, v, at = self._held
            return Unordered(k, v, Later(lambda: at, True))
        return self._in_order()

    def _in_order(self) -> Dense:
        """Return sinks that have left the window, then the window, then a new chunk."""
        last = self._seen - (self._new[0].shape[2] if self._new else 0)
        turn = last % self.window
        pieces = []
        for held, axis in zip(self._held, (2, 2, 1), strict=True):
            sinks, old, new = held.split((self.sinks, turn, self.window - turn), axis)
            pieces.append([sinks, new, old])
        first = pieces[2][0]
        pieces[2][0] = torch.where(first < last - self.window, first, -1)
        for own, x in zip(pieces, self._new, strict=False):
            own.append(x)
        k, v, at = (torch.cat(own, axis) for own, axis in zip(pieces, (2, 2, 1), strict=True))
        return Dense(k, v, at.long())

    def widen(self, window: int) -> None:
        """Widen the window (any size while nothing was dropped); dropped tokens stay dropped.

        >>> memory, token = Ring(window=2), torch.ones(1, 1, 1, 2)
        >>> for t in range(6):
        ...     memory.extend(token, token)
        ...     memory.settle()
        ...     if t == 3:
        ...         memory.widen(4)
        >>> memory.read().positions.tolist()
        [[2, 3, 4, 5]]
        """
        need_count("window", window)
        if self._young is None and window < self.window:
            fail(
                ValueRangeError, "window", window, f"at least {self.window}", "widen it, or build "
                "another ring",
            )  # fmt: skip
        if self._young is None and window > self.window:
            last = self._seen - (self._new[0].shape[2] if self._new else 0)
            slots = torch.arange(last - self.window, last, device=self._held[2].device)
            made = []
            for held, axis in zip(self._held, (2, 2, 1), strict=True):
                shape = list(held.shape)
                shape[axis] = self.sinks + window
                room = held.new_full(shape, -1 if axis == 1 else 0)
                room.narrow(axis, 0, self.sinks).copy_(held.narrow(axis, 0, self.sinks))
                old = held.index_select(axis, self.sinks + slots % self.window)
                made.append(room.index_copy_(axis, self.sinks + slots % window, old))
            self._held, self._full = made, False
        self.window = window

    def forget(self, horizon: Spans) -> None:
        """Do nothing: `settle` drops what has left the ring."""

    def crop(self, length: int) -> None:
        """Crop, while nothing has been overwritten."""
        if self._young is not None:
            self._young.crop(length)
        else:
            self.check_crop(length)
        self._seen = length

    def check_crop(self, length: int) -> None:
        """Raise once the window has been overwritten."""
        if self._young is not None:
            self._young.check_crop(length)
        else:
            need_crop(length, self._seen, self._seen)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        if self._young is not None:
            self._young.reorder(rows)
        self._held, self._new = (
            [take_batch(x, rows) for x in held] for held in (self._held, self._new)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of sinks, ring and new tokens."""
        held = (*self._held, *self._new)
        young = 0 if self._young is None else self._young.nbytes
        return young + sum(x.untyped_storage().nbytes() for x in held)

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        young = None if self._young is None else self._young.state()
        return {
            "window": self.window, "sinks": self.sinks, "seen": self._seen, "young": young,
            # Later steps write in place, so a state has copies.
            "held": [x.clone() for x in self._held], "new": list(self._new),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        if (state["window"], state["sinks"]) != (self.window, self.sinks):
            fail(
                ValueRangeError, "state", f"window {state['window']}, sinks {state['sinks']}",
                f"window {self.window}, sinks {self.sinks}", "build the ring as it was saved",
            )  # fmt: skip
        self._seen = state["seen"]
        self._young = None
        if state["young"] is not None:
            self._young = Kept()
            self._young.restore(state["young"])
        self._held, self._new = [x.clone() for x in state["held"]], list(state["new"])
        # Recomputed at the next step.
        self._full = False
