"""Steps that look at the query, the key, or their place in the call."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import ShapeError, fail
from regard.core.readable import can_be_read
from regard.core.score.base import (
    At,
    Change,
    ScoreMod,
    as_float,
    distance,
    need_heads,
    need_number,
    need_tensor,
)
from regard.core.score.biases import PlaceStep, need_odd
from regard.core.support.chosen import pick
from regard.core.value import value


def _need_sizes(name: str, x: Tensor, b: int, h: int, size: int) -> None:
    """Raise unless x is [b or 1, h or 1, size, ...]."""
    if x.shape[0] not in (1, b) or x.shape[1] not in (1, h) or x.shape[2] != size:
        fail(
            ShapeError,
            name,
            f"{list(x.shape)}",
            f"[{b} or 1, {h} or 1, {size}, ...]",
            "give one entry for each token of the call",
        )


def _heads_fit(x: Tensor, k: Tensor) -> bool:
    """Return whether x [b, h, ...] can be joined to k [b, g, m, d] without expanding k."""
    return x.shape[1] in (1, k.shape[1])


def _joined(x: Tensor, extra: Tensor) -> Tensor:
    """Append channels to x [b, h, n, d]."""
    return torch.cat([x, extra.to(x).expand(*x.shape[:-1], extra.shape[-1])], dim=-1)


@value
class LowRankBias(PlaceStep):
    """A bias that factors: u_i . v_j, `u` [b or 1, h or 1, n, r], `v` [b or 1, h or 1, m, r].

    It rides in r extra channels of q and k, so that fused kernels run it exactly (flashbias).

    >>> print(LowRankBias(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)))
    LowRankBias(<float32 1x1x4x2>, <float32 1x1x4x2>)
    """

    u: Tensor
    v: Tensor
    _head_axis: ClassVar = {"u": 1, "v": 1}
    by_token: ClassVar = True
    asks_positions: ClassVar = False

    def __post_init__(self) -> None:
        need_tensor("u", self.u, "[b or 1, h or 1, n, r]")
        need_tensor("v", self.v, "[b or 1, h or 1, m, r]")
        if self.u.shape[-1] != self.v.shape[-1]:
            fail(
                ShapeError,
                "v",
                f"rank {self.v.shape[-1]}",
                f"rank {self.u.shape[-1]}, as u",
                "factor the bias into two equal ranks",
            )

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the product, channel by channel (exact, and never [n, m, r])."""
        for c in range(self.u.shape[-1]):
            left = pick(self.u[..., c], at.b, at.h, at.row)
            scores = scores + as_float(left, scores) * as_float(
                pick(self.v[..., c], at.b, at.h, at.col), scores
            )
        return scores

    def fold(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """Append u and v, u divided by what the product is later scaled with."""
        if not _heads_fit(self.v, k) or scale == 0:
            return None
        return _joined(q, self.u.to(q) / scale), _joined(k, self.v)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One row of u for each query, of v for each key."""
        _need_sizes("u", self.u, b, h, n)
        _need_sizes("v", self.v, b, h, m)


@value
class KeyWeights(PlaceStep):
    """A log-weight for each key, `log_weight` [b or 1, h or 1, m]: extra keys share one softmax.

    0 leaves a key alone, log 2 counts it twice, −inf removes it.

    >>> print(KeyWeights(torch.zeros(1, 1, 4)))
    KeyWeights(<float32 1x1x4>)
    """

    log_weight: Tensor
    _head_axis: ClassVar = {"log_weight": 1}
    by_token: ClassVar = True
    asks_positions: ClassVar = False

    def __post_init__(self) -> None:
        need_tensor("log_weight", self.log_weight, "[b or 1, h or 1, m]")

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the log-weight of the key."""
        return scores + as_float(pick(self.log_weight, at.b, at.h, at.col), scores)

    def contents(self) -> bool:
        """Return whether all weights are finite, as the tensor is now; False where unreadable."""
        if not can_be_read(self.log_weight):
            return False

        def finite() -> bool:
            return bool(self.log_weight.detach().isfinite().all())

        if self.log_weight.is_inference():  # changes of it leave no trace
            return finite()
        return self.memo(("finite", self.log_weight._version), finite)

    def fold(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """Append a channel of ones to q. An infinite weight cannot ride: 0 x inf is no number."""
        if not self.contents() or not _heads_fit(self.log_weight, k) or scale == 0:
            return None
        ones = q.new_full((1, 1, 1, 1), 1.0)
        return _joined(q, ones), _joined(k, self.log_weight[..., None].to(k) / scale)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One weight for each key."""
        _need_sizes("log_weight", self.log_weight, b, h, m)


@value
class Temperature(PlaceStep):
    """A factor for each query, `query` [b or 1, h or 1, n], and for each key, `key` [..., m].

    Selective attention, scaling by the number of visible keys, entropy control: all are this.

    >>> print(Temperature(query=torch.ones(1, 1, 4)))
    Temperature(<float32 1x1x4>)
    """

    query: Tensor | None = None
    key: Tensor | None = None
    adds: ClassVar = False
    _head_axis: ClassVar = {"query": 1, "key": 1}
    by_token: ClassVar = True
    asks_positions: ClassVar = False

    def __post_init__(self) -> None:
        if self.query is None and self.key is None:
            fail(
                ShapeError,
                "query",
                "no factors",
                "factors of the queries, the keys, or both",
                "pass query=tensor [b or 1, h or 1, n]",
            )
        for name in ("query", "key"):
            if getattr(self, name) is not None:
                need_tensor(name, getattr(self, name), "[b or 1, h or 1, n]")

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Multiply by both factors."""
        if self.query is not None:
            scores = scores * as_float(pick(self.query, at.b, at.h, at.row), scores)
        if self.key is not None:
            scores = scores * as_float(pick(self.key, at.b, at.h, at.col), scores)
        return scores

    def fold(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """Multiply q and k."""
        if self.key is not None and not _heads_fit(self.key, k):
            return None
        if self.query is not None:
            q = q * self.query[..., None].to(q)
        return q, k if self.key is None else k * self.key[..., None].to(k)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One factor for each token."""
        if self.query is not None:
            _need_sizes("query", self.query, b, h, n)
        if self.key is not None:
            _need_sizes("key", self.key, b, h, m)


@value
class QueryBias(PlaceStep):
    """A number for each query and distance j - i, clipped: `table` [b or 1, h or 1, n, 2r + 1].

    >>> print(QueryBias(torch.zeros(1, 1, 4, 3)))
    QueryBias(<float32 1x1x4x3>)
    """

    table: Tensor
    by_token: ClassVar = True
    _head_axis: ClassVar = {"table": 1}

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the number of the query and the distance."""
        reach = self.table.shape[3] // 2
        place = distance(at).clamp(-reach, reach) + reach
        return scores + pick(self.table, at.b, at.h, at.row, place).to(scores.dtype)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One row for each query, and a distance 0 in the middle."""
        _need_sizes("table", self.table, b, h, n)
        need_odd("table", self.table.shape[3])


@value
class ShawBias(ScoreMod):
    """A learned vector for each distance, met by the query: scale q_i . a_{clip(j - i)} (Shaw).

    `table` [h or 1, 2r + 1, d]. Music Transformer's relative bias is the same sum; the product of
    q with the whole table is made once, and looked up, so nothing of size [n, n, d] exists.

    >>> print(ShawBias(torch.zeros(1, 9, 64)))
    ShawBias(<float32 1x9x64>)
    """

    table: Tensor
    scale: float | None = None
    _head_axis: ClassVar = {"table": 0}

    def __post_init__(self) -> None:
        need_tensor("table", self.table, "[h or 1, 2r + 1, d]")
        need_odd("table", self.table.shape[1])
        if self.scale is not None:
            need_number("scale", self.scale)

    def bind(self, q: Tensor, k: Tensor) -> Change:
        """Meet every distance once."""
        return self.placed(q, k).change

    def placed(self, q: Tensor, k: Tensor) -> QueryBias:
        """Meet every distance once: [b, h, n, 2r + 1]."""
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        return QueryBias((q @ self.table.to(q).transpose(-1, -2)) * scale)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Vectors of the head size."""
        need_heads("table", self.table.shape[0], h)
        if self.table.shape[2] != d:
            fail(
                ShapeError,
                "table",
                f"vectors of size {self.table.shape[2]}",
                f"size {d}, as q",
                "give one vector of the head size for each distance",
            )


@value
class Cope(ScoreMod):
    """Contextual position: distance counted in keys that the query finds worth counting (CoPE).

    A gate sigmoid(s_ij) says whether key j counts; the position of key j is the sum of gates from
    j to the query, and the bias is q_i . e[position], interpolated. `table` [h or 1, positions, d].

    >>> Cope(torch.zeros(1, 16, 64)).needs_row
    True
    """

    table: Tensor
    needs_row: ClassVar = True
    _head_axis: ClassVar = {"table": 0}

    def __post_init__(self) -> None:
        need_tensor("table", self.table, "[h or 1, positions, d]")

    def bind(self, q: Tensor, k: Tensor) -> Change:
        """Meet every position once: [b, h, n, positions]."""
        met = q @ self.table.to(q).transpose(-1, -2)
        last = self.table.shape[1] - 1

        def change(scores: Tensor, at: At) -> Tensor:
            gates = torch.sigmoid(scores)
            if at.allowed is not None:
                gates = gates * at.allowed
            position = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=last)
            index = position.nan_to_num()  # a NaN is no index; it stays in the share
            low, high = index.floor().long(), index.ceil().long()
            share = position - low
            below, above = met[at.b, at.h, at.row, low], met[at.b, at.h, at.row, high]
            return scores + torch.lerp(below.to(scores), above.to(scores), share)

        return change

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Vectors of the head size."""
        need_heads("table", self.table.shape[0], h)
        if self.table.shape[2] != d:
            fail(
                ShapeError,
                "table",
                f"vectors of size {self.table.shape[2]}",
                f"size {d}, as q",
                "give one vector of the head size for each position",
            )
