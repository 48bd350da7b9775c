"""Steps that know only where a pair is: positional biases, caps, edits between groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, fail, shape_of
from regard.core.score.base import (
    At,
    Change,
    ScoreMod,
    as_float,
    distance,
    need_heads,
    need_number,
    need_tensor,
    per_head,
)
from regard.core.support.bands import need_count
from regard.core.support.lattice import Neighborhood
from regard.core.support.tokens import as_rows, look_up
from regard.core.value import value


class PlaceStep(ScoreMod):
    """A step that needs no q and k: subclasses write `change`."""

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Map scores to scores."""
        raise NotImplementedError

    def bind(self, q: Tensor, k: Tensor) -> Change:
        """There is nothing to prepare but the device."""
        return self.to(q.device).change if self.tensors() else self.change

    def placed(self, q: Tensor, k: Tensor) -> ScoreMod:
        """It already is."""
        return self

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Return what belongs to some of the query heads; a step that reads `h` gets the old."""
        if self._head_axis or list(heads) == list(range(len(heads))) or not self.asks_heads():
            return super().take_heads(heads)
        return StepOfHeads(self, tuple(heads))  # type: ignore[return-value]

    def asks_heads(self) -> bool:
        """Return whether it makes different scores of one score at one place, for two heads."""
        own = [x for x in self.reads().tensors if x.is_floating_point()]
        score = (
            torch.zeros((), device=own[0].device, dtype=own[0].dtype) if own else torch.zeros(())
        )
        zero = torch.zeros(1, dtype=torch.long, device=score.device)
        at = At(zero.view(1, 1, 1, 1), zero.expand(2, 1, 1), zero.view(1, 1), zero, zero, zero)
        try:
            return self.change(score, at).numel() > 1
        except (RuntimeError, IndexError, ValueError, TypeError):
            return True  # it wants more than one pair: with the old numbers it is right anyway


@value
class SoftCap(PlaceStep):
    """Keep scores within (-cap, cap): cap tanh(s / cap).

    >>> SoftCap(2.0).change(torch.tensor([0.0, 100.0]), None).tolist()
    [0.0, 2.0]
    """

    cap: float
    adds: ClassVar = False
    asks_positions: ClassVar = False

    def __post_init__(self) -> None:
        need_number("cap", self.cap, above=0)

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Squash."""
        return self.cap * torch.tanh(scores / self.cap)


@value
class Alibi(PlaceStep):
    """A penalty that grows with distance: -slope |i - j|, `slopes` [h] or [1] (ALiBi).

    >>> Alibi.for_heads(2).slopes.tolist()
    [0.0625, 0.00390625]
    """

    slopes: Tensor
    _head_axis: ClassVar = {"slopes": 0}

    def __post_init__(self) -> None:
        need_tensor("slopes", self.slopes, "[h or 1]")

    @staticmethod
    def for_heads(h: int) -> Alibi:
        """Return the paper's slopes: a geometric row, filled up from the next power of two."""
        need_count("h", h)
        whole = 2 ** math.floor(math.log2(h))
        slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
        slopes += [2 ** (-4 * (2 * i + 1) / whole) for i in range(h - whole)]
        return Alibi(torch.tensor(slopes))

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Subtract the penalty."""
        return scores - as_float(per_head(self.slopes, at), scores) * distance(at).abs()

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One slope for each head."""
        need_heads("slopes", self.slopes.shape[0], h)


@value
class DistanceBias(PlaceStep):
    """A Gaussian of the distance: -(i - j)^2 / (2 width^2), `width` [h] or [1].

    >>> print(DistanceBias(torch.tensor([1.0])))
    DistanceBias(<float32 1>)
    """

    width: Tensor
    _head_axis: ClassVar = {"width": 0}

    def __post_init__(self) -> None:
        need_tensor("width", self.width, "[h or 1]")

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Subtract the squared distance."""
        apart = distance(at).to(scores.dtype) / as_float(per_head(self.width, at), scores)
        return scores - 0.5 * apart * apart

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One width for each head."""
        need_heads("width", self.width.shape[0], h)


@value
class RelativeBias(PlaceStep):
    """A learned number for each distance j - i, clipped at the ends of the table.

    `table` [h or 1, 2r + 1]; its middle entry is distance 0.

    >>> RelativeBias(torch.zeros(8, 15)).reach
    7
    """

    table: Tensor
    _head_axis: ClassVar = {"table": 0}

    def __post_init__(self) -> None:
        need_tensor("table", self.table, "[h or 1, 2r + 1]")
        need_odd("table", self.table.shape[1])

    @property
    def reach(self) -> int:
        """The largest distance with a number of its own."""
        return self.table.shape[1] // 2

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the number of the distance."""
        place = distance(at).clamp(-self.reach, self.reach) + self.reach
        return scores + as_float(per_head(self.table, at, place), scores)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One row for each head."""
        need_heads("table", self.table.shape[0], h)


@value
class LatticeBias(PlaceStep):
    """A learned number for each offset on a lattice (natten, Swin), clipped at the ends.

    `table` [h or 1, 2r_1 + 1, ...] with an axis for each of `lattice`.

    >>> LatticeBias(torch.zeros(4, 13, 13), (32, 32)).lattice
    (32, 32)
    """

    table: Tensor
    lattice: tuple[int, ...]
    _head_axis: ClassVar = {"table": 0}

    def __post_init__(self) -> None:
        axes = (self.lattice,) if isinstance(self.lattice, int) else tuple(self.lattice)
        Neighborhood((1,) * len(axes), axes)  # which checks the axes
        object.__setattr__(self, "lattice", axes)
        need_tensor("table", self.table, "[h or 1" + ", 2r + 1" * len(axes) + "]")
        for size in self.table.shape[1:]:
            need_odd("table", size)

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the number of the offset."""
        lattice = Neighborhood((1,) * len(self.lattice), self.lattice)
        places = []
        for size, x, y in zip(
            self.table.shape[1:], lattice.coordinates(at.i), lattice.coordinates(at.j), strict=True
        ):
            places.append((y - x).clamp(-(size // 2), size // 2) + size // 2)
        return scores + as_float(per_head(self.table, at, *places), scores)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One table for each head."""
        need_heads("table", self.table.shape[0], h)


@value
class T5Bias(PlaceStep):
    """T5's learned number for each bucket of distances; buckets widen with distance.

    `table` [h or 1, buckets]. Bidirectional models spend half the buckets on each direction.

    >>> T5Bias(torch.zeros(8, 32), bidirectional=False).bucket(torch.tensor([0, -1, -200])).tolist()
    [0, 1, 31]
    """

    table: Tensor
    bidirectional: bool = True
    max_distance: int = 128
    _head_axis: ClassVar = {"table": 0}

    def __post_init__(self) -> None:
        need_tensor("table", self.table, "[h or 1, buckets]")
        if self.table.shape[1] < 4:
            fail(ShapeError, "table", f"{self.table.shape[1]} buckets", "at least 4", "T5 has 32")
        # Up to `exact` each distance has its own bucket; the others share what lies beyond.
        exact = self.table.shape[1] // (4 if self.bidirectional else 2)
        need_number("max_distance", self.max_distance, above=exact)

    def bucket(self, apart: Tensor) -> Tensor:
        """Return the bucket of each distance j - i."""
        buckets = self.table.shape[1]
        base = apart * 0
        if self.bidirectional:
            buckets //= 2
            base = (apart > 0) * buckets
            apart = apart.abs()
        else:
            apart = (-apart).clamp(min=0)
        exact = buckets // 2
        wide = torch.log(apart.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (wide * (buckets - exact)).long()).clamp(max=buckets - 1)
        return base + torch.where(apart < exact, apart, far)

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the number of the bucket."""
        return scores + as_float(per_head(self.table, at, self.bucket(distance(at))), scores)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One row for each head."""
        need_heads("table", self.table.shape[0], h)


@value
class GroupBias(PlaceStep):
    """A number added between groups of tokens: `table` [h or 1, groups, groups], −inf forbids.

    `query` and `key` ([n] or [b, n], by position) name the group of each token.

    >>> GroupBias(torch.tensor([0, 1]), torch.zeros(1, 2, 2)).extent()
    1
    """

    query: Tensor
    table: Tensor
    key: Tensor = None  # type: ignore[assignment]  # taken from the query where not given
    _head_axis: ClassVar = {"table": 0}

    def __post_init__(self) -> None:
        need_tensor("table", self.table, "[h or 1, groups, groups]")
        query = as_rows("query", self.query, torch.long)
        object.__setattr__(self, "query", query)
        key = query if self.key is None else as_rows("key", self.key, torch.long)
        object.__setattr__(self, "key", key)
        for name, groups, axis in (("query", query, 1), ("key", key, 2)):
            if int(groups.max()) >= self.table.shape[axis] or int(groups.min()) < 0:
                fail(
                    ShapeError,
                    name,
                    f"groups up to {int(groups.max())}",
                    f"0 to {self.table.shape[axis] - 1}, as the table has",
                    "widen the table",
                )

    def extent(self) -> int:
        """Return the batch that the groups were given for."""
        return max(self.query.shape[0], self.key.shape[0])

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Add the number of the pair of groups."""
        rows = look_up(self.query, at.b, at.i), look_up(self.key, at.b, at.j)
        return scores + as_float(per_head(self.table, at, *rows), scores)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """One table for each head, groups for each row of the batch."""
        need_heads("table", self.table.shape[0], h)
        if self.extent() not in (1, b):
            fail(
                ShapeError,
                "query",
                f"groups for a batch of {self.extent()}",
                f"1 or {b}",
                "give the groups of each row of the batch",
            )


@value
class ScoreStep(PlaceStep):
    """Any function (scores, b, h, i, j) -> scores, elementwise, as FlexAttention's score_mod.

    >>> double = ScoreStep(lambda s, b, h, i, j: 2 * s)
    """

    function: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    adds: ClassVar = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            fail(
                RuleError,
                "function",
                shape_of(self.function),
                "a function of (s, b, h, i, j)",
                "pass a function that maps scores to scores",
            )

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Ask the function."""
        return self.function(scores, at.b, at.h, at.i, at.j)


@value
class StepOfHeads(PlaceStep):
    """Some heads of a step, under the numbers they had: head x is head `heads[x]` of it.

    >>> step = ScoreStep(lambda s, b, h, i, j: s + h)
    >>> at = At(*torch.zeros(6, 1, dtype=torch.long))
    >>> StepOfHeads(step, (3, 1)).change(torch.zeros(1), at).tolist()
    [3.0]
    """

    step: PlaceStep
    heads: tuple[int, ...]
    adds: ClassVar = False

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Ask about the old numbers."""
        old = torch.tensor(self.heads, device=at.h.device)
        # Heads beyond the last are asked about by a look at the shape of the answer alone.
        return self.step.change(scores, at._replace(h=old[at.h.clamp(max=len(self.heads) - 1)]))

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Select some of these heads."""
        return self.replace(heads=tuple(self.heads[h] for h in heads))

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Check the step."""
        self.step.check(b, max(h, *self.heads, 0), n, m, d)


def need_odd(name: str, size: int) -> None:
    """Raise unless a table of distances has a middle."""
    if size % 2 == 0:
        fail(
            ShapeError,
            name,
            f"{size} entries",
            "an odd number, 2r + 1, with distance 0 in the middle",
            "add the entry that is missing",
        )
