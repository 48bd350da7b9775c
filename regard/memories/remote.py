"""Keys in other processes, which attend to them: queries are sent, outputs are returned."""

from __future__ import annotations

import heapq
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.spans import Spans
from regard.core.support import Causal, Everything
from regard.memories.base import KeyMemory, extended_positions, need_keys
from regard.memories.workers import AttentionWorkers


class Remote(KeyMemory):
    """Keys that workers keep: `append` sends them, `attend` sends queries first, then new keys.

    A step costs (2 + 2 / G) e d b bytes each way together: q and the output, and keys and values of
    one head for each G query heads, e bytes a number.
    """

    def __init__(self, workers: AttentionWorkers, name: int) -> None:
        self.workers, self.name = workers, name
        self.seen = 0
        self._new: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._kind: tuple[torch.device, torch.dtype] | None = None
        self._at: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens, which are sent after the next queries."""
        need_keys(k, v, keep)
        self._flush()
        keep = None if keep is None or bool(keep.all()) else keep
        self._at = extended_positions(self._at, self.seen, k, keep)
        self._new, self._kind = (k, v, keep), (k.device, k.dtype)
        self.seen += k.shape[2]

    append = extend

    def _cut(self, x: Tensor, share: int = 1) -> list[Tensor]:
        parts = self.workers.parts(x.shape[1] // share)
        return [x[:, p.start * share : p.stop * share] for p in parts]

    def _flush(self) -> None:
        if self._new is not None:
            k, v, keep = self._new
            self._new = None
            self.workers.tell([
                {**self._about("append"), "keep": _here(keep), "k": own_k, "v": own_v}
                for own_k, own_v in zip(self._cut(k), self._cut(v), strict=True)
            ])  # fmt: skip

    def _about(self, what: str) -> dict[str, Any]:
        return {"what": what, "name": self.name}

    def _all(self, what: str, told: Any = None) -> list[dict[str, Any]]:
        return [{**self._about(what), "told": told} for _ in self.workers.lines]

    def attend(self, q: Tensor, rule: Rule | None = None) -> Tensor:
        """Attend causally from the tokens appended last, q [b, h, n, d]: [b, h, n, e]."""
        if self._new is None or self._new[0].shape[2] != q.shape[2]:
            fail(
                ValueRangeError, "q", f"{q.shape[2]} queries", "one for each token appended last",
                "append their keys and values first",
            )  # fmt: skip
        k, v, keep = self._new
        self._new = None
        rule = Rule() if rule is None else rule
        if rule.weigh.has_sink or not isinstance(rule.support, Everything | Causal):
            fail(
                CapabilityError, "rule", f"{rule}", "causal softmax",
                "attend to windows and sinks locally, where their keys are few",
            )  # fmt: skip
        plain = rule.replace(support=Everything(), offset=0)
        share = q.shape[1] // k.shape[1]
        heads = [range(p.start * share, p.stop * share) for p in self.workers.parts(k.shape[1])]
        asked = [
            {**self._about("attend"), "keep": _here(keep), "q": own,
             "rule": plain.take_heads(list(some)).to_json()}
            for own, some in zip(self._cut(q, share), heads, strict=True)
        ]  # fmt: skip
        new = [{"k": x, "v": y} for x, y in zip(self._cut(k), self._cut(v), strict=True)]
        return torch.cat([x for (x,) in self.workers.ask(asked, new)], 1).to(q.device)

    def keys(self) -> Dense:
        """Copy all keys and values back."""
        self._flush()
        if self._kind is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        found = self.workers.ask(self._all("read"))
        k, v = (torch.cat(x, 1).to(self._kind[0]) for x in zip(*found, strict=True))
        return Dense(k, v, self._at)

    def forget(self, horizon: Spans) -> None:
        """Keep all."""

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens."""
        self._flush()
        if self.seen:
            self.workers.tell(self._all("crop", length))
        self.seen, self._at = length, None if self._at is None else self._at[:, :length]

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        self._flush()
        if self.seen:
            self.workers.tell(self._all("reorder", rows.cpu()))
        self._at = None if self._at is None else take_batch(self._at, rows)

    def free(self) -> None:
        """Free the keys on the workers."""
        self.workers.tell(self._all("free"))
        self.seen, self._new, self._at = 0, None, None

    @property
    def nbytes(self) -> int:
        """Bytes held here: tokens that are not sent yet, and positions."""
        held = [x for x in (*(self._new or ()), self._at) if isinstance(x, Tensor)]
        return sum(x.untyped_storage().nbytes() for x in held)


def _here(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu()


def wire_bytes(heads: int, kv_heads: int, size: int, batch: int, layers: int, item: int) -> float:
    """Return the bytes a decoding step moves: (2 + 2 / G) e d b layers, d over all query heads.

    >>> wire_bytes(heads=32, kv_heads=8, size=128, batch=64, layers=32, item=2)
    41943040.0
    """
    return (2 + 2 * kv_heads / heads) * item * heads * size * batch * layers


def bandwidth(moved: float, t_model: float, t_attention: float, share: float = 0.2) -> float:
    """Return the bandwidth in bytes a second, if sending may take a `share` of a step's time."""
    return moved / (share * (t_model + t_attention))


def staggered(
    batches: int, t_model: float, t_attention: float, rounds: int = 40
) -> tuple[float, float]:
    """Return the idle shares of n - 1 model replicas and one attention pool, with n batches.

    Batch i begins at i t_model / (n - 1); each alternates between a replica and the pool. Both are
    always busy where t_attention = t_model / (n - 1).

    >>> [round(x, 6) for x in staggered(4, 3.0, 1.0)]
    [0.0, 0.0]
    """
    if batches < 2:
        fail(ValueRangeError, "batches", batches, "2 or more", "one batch leaves one side idle")
    replicas, pool = [0.0] * (batches - 1), [0.0]
    waiting = [(i * t_model / (batches - 1), i, 0) for i in range(batches)]
    used: tuple[list[tuple[float, float]], ...] = ([], [])
    for _ in range(2 * rounds * batches):
        ready, i, stage = heapq.heappop(waiting)
        servers, takes = (pool, t_attention) if stage else (replicas, t_model)
        begin = max(ready, heapq.heappop(servers))
        heapq.heappush(servers, begin + takes)
        used[stage].append((begin, begin + takes))
        heapq.heappush(waiting, (begin + takes, i, 1 - stage))
    end = min(max(b for _, b in x) for x in used)
    first, last = end / 4, 3 * end / 4  # away from the beginning and the end
    busy = [sum(max(0.0, min(b, last) - max(a, first)) for a, b in x) for x in used]
    room = last - first
    return 1 - busy[0] / (room * (batches - 1)), 1 - busy[1] / room
