"""Edits of weights: move mass between sets of keys, with the sum of every row unchanged.

Multiplying the weights of a set of keys by one factor per row is a bias on its scores: the log of
that factor. So the mass of the sets is measured first, in one pass of attention whose values are
indicators of the sets; then the factors are added to the rule, and every executor, probe and policy
sees the edited weights. No [n, m] tensor is built.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.edit import FORBIDDEN, AttentionEdit, add_bias
from regard.controls.score_edits import queries_of
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.text_tokens import read_sets, token_set
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.core.partial import wide
from regard.core.value import value
from regard.run.runner import run


def masses(call: Call, sets: list[Tensor]) -> Tensor:
    """Return the weight of each query on sets of keys, bool [b or 1, h or 1, m]: [sets, b, h, n].

    >>> q = torch.randn(1, 2, 3, 4)
    >>> every = torch.ones(1, 1, 3, dtype=torch.bool)
    >>> masses(Call.of(q, q, q), [every])[0, 0, 0].allclose(torch.ones(3))
    True
    """
    dtype = wide(call.q.dtype)
    q, k = call.q.to(dtype), call.k.to(dtype)
    if any(x.shape[1] > 1 for x in sets):
        k = expand_heads(k, call.h)
    b, g, m = k.shape[:3]
    marks = torch.stack([x.expand(b, g, m) for x in sets], -1).to(dtype)
    out = run(call.replace(q=q, k=k, v=marks, dropout=0.0)).out
    return out.movedim(-1, 0).clamp(min=0.0)


class _Rebalance(AttentionEdit):
    """Base of edits that change the share of one set against all other keys."""

    keys: TokenSet
    strength: Strength
    queries: TokenSet | None
    point: ClassVar[str] = "weights"
    neutral: ClassVar[float] = 1.0
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        read_sets(self, "keys")
        object.__setattr__(self, "strength", strength_of(self.strength, self.low, self.high))

    def share(self, old: Tensor, number: float | Tensor) -> Tensor:
        """Return the new share of the set, for shares [b, h, n] strictly between 0 and 1."""
        raise NotImplementedError

    def before(self, at: EditContext) -> Call:
        """Measure the shares, and add the logs of the factors."""
        if is_neutral(self.strength, self.neutral):
            return at.call
        keys, chosen = self.keys.mask(at), queries_of(at, self.queries)
        mine, others = masses(at.call, [keys, ~keys])
        both = (mine > 0) & (others > 0) & chosen
        old = torch.where(both, mine / (mine + others).clamp(min=1e-30), 0.5)
        number = at.number(self.strength)
        new = self.share(old, number)
        if isinstance(number, Tensor):
            new = torch.where(number == self.neutral, old, new)
        up, down = _log(new / old), _log((1 - new) / (1 - old))
        return add_bias(
            at.call, [(torch.where(both, up, 0.0), keys), (torch.where(both, down, 0.0), ~keys)]
        )


def _log(factor: Tensor) -> Tensor:
    """Return the log of factors; for 0 a finite number low enough to remove the weight."""
    return torch.where(factor > 0, factor.clamp(min=1e-38).log(), -FORBIDDEN)


@value
class ShareToPower(_Rebalance):
    """Raise the share p of some keys to p^strength; 1 changes nothing, 0 gives them everything.

    Ratios inside the set, and among the other keys, are kept.

    >>> ShareToPower("Paris", 0.5).strength
    0.5
    """

    keys: TokenSet
    strength: Strength = 0.5
    queries: TokenSet | None = None
    law: ClassVar[str] = "mass p on the keys becomes p^strength; rows sum to one; ratios are kept"
    high: ClassVar[float] = math.inf

    def share(self, old: Tensor, number: float | Tensor) -> Tensor:
        """Return p^strength."""
        return old**number


@value
class SetShare(_Rebalance):
    """Give some keys this share of the weight of every query that sees any of them.

    Ratios inside the set, and among the other keys, are kept. There is no neutral strength.

    >>> SetShare("Paris", 0.25).law
    'mass on the keys becomes strength; rows sum to one; ratios inside both groups are kept'
    """

    keys: TokenSet
    strength: Strength = 0.5
    queries: TokenSet | None = None
    law: ClassVar[str] = (
        "mass on the keys becomes strength; rows sum to one; ratios inside both groups are kept"
    )
    neutral: ClassVar[float] = math.nan

    def share(self, old: Tensor, number: float | Tensor) -> Tensor:
        """Return the share."""
        return torch.zeros_like(old) + number


@value
class MoveMass(AttentionEdit):
    """Move a share of the weight of `source` to `target`, in proportion to what they have.

    Without a target it goes to all other keys. A query that sees none of the target is unchanged;
    0 moves nothing, 1 everything.

    >>> MoveMass("the", "Paris", 0.6).strength
    0.6
    """

    source: TokenSet
    target: TokenSet | None = None
    strength: Strength = 0.5
    queries: TokenSet | None = None
    point: ClassVar[str] = "weights"
    law: ClassVar[str] = (
        "strength times the mass of source is moved to the target; other keys keep their weights, "
        "and ratios inside both sets are kept"
    )

    def __post_init__(self) -> None:
        read_sets(self, "source", optional=("target", "queries"))
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))

    def before(self, at: EditContext) -> Call:
        """Measure both sets, and add the logs of the factors."""
        if is_neutral(self.strength, 0.0):
            return at.call
        source = self.source.mask(at)
        to = ~source if self.target is None else self.target.mask(at) & ~source
        if self.target is not None and not bool(to.any()):
            fail(
                ValueRangeError, "target", str(self.target), "keys that are not in the source",
                "name another set to move to",
            )  # fmt: skip
        return move_mass(
            at.call, source, to, at.number(self.strength), queries_of(at, self.queries)
        )


def move_mass(
    call: Call, source: Tensor, target: Tensor, share: float | Tensor, queries: Tensor
) -> Call:
    """Move a share of the weight of queries [b or 1, h or 1, n or 1] on `source` to `target`.

    Both are bool [b or 1, h or 1, m] with no key in common; a query that sees none of the target is
    unchanged.

    >>> q = torch.randn(1, 1, 2, 4)
    >>> a = torch.tensor([[[True, False]]])
    >>> moved = move_mass(Call.of(q, q, q), a, ~a, 1.0, torch.ones(1, 1, 1, dtype=torch.bool))
    >>> masses(moved, [a]).max().item()
    0.0
    """
    lost, gained = masses(call, [source, target])
    moves = (lost > 0) & (gained > 0) & queries
    left = torch.as_tensor(1.0 - share, dtype=lost.dtype, device=lost.device)
    less = _log(torch.where(moves, left, 1.0))
    more = torch.log1p(torch.where(moves, share * lost / gained.clamp(min=1e-30), 0.0))
    return add_bias(call, [(less, source), (more, target)])


@value
class EvenOut(AttentionEdit):
    """Move the mass of several sets toward their mean: 1 makes them equal, 0 changes nothing.

    >>> EvenOut(("A", "B")).sets()
    (Phrase('A'), Phrase('B'))
    """

    parts: tuple[TokenSet, ...]
    strength: Strength = 1.0
    queries: TokenSet | None = None
    point: ClassVar[str] = "weights"
    law: ClassVar[str] = "at strength 1 all sets have equal mass; their sum and all else is kept"

    def __post_init__(self) -> None:
        many = tuple(token_set(x) for x in self.parts)
        if len(many) < 2:
            fail(ValueRangeError, "parts", f"{len(many)} sets", "at least 2", "name two sets")
        object.__setattr__(self, "parts", many)
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))
        read_sets(self)

    def sets(self) -> tuple[TokenSet, ...]:
        """Return the sets."""
        return self.parts

    def before(self, at: EditContext) -> Call:
        """Measure the sets, and add the logs of the factors."""
        if is_neutral(self.strength, 0.0):
            return at.call
        marks = [x.mask(at) for x in self.parts]
        have = masses(at.call, marks)
        evens = (have > 0).all(0) & queries_of(at, self.queries)
        new = have + at.number(self.strength) * (have.mean(0) - have)
        factors = _log(torch.where(evens, new / have.clamp(min=1e-30), 1.0))
        return add_bias(at.call, list(zip(factors, marks, strict=True)))


@value
class Swap(AttentionEdit):
    """Exchange the mass of two sets of keys: 1 swaps them, 0 does nothing.

    A query that sees none of one of them is unchanged.

    >>> Swap("A", "B").strength
    1.0
    """

    first: TokenSet
    second: TokenSet
    strength: Strength = 1.0
    queries: TokenSet | None = None
    point: ClassVar[str] = "weights"
    law: ClassVar[str] = (
        "at strength 1 each set has the other's mass; ratios inside both, their sum and all else "
        "are kept"
    )

    def __post_init__(self) -> None:
        read_sets(self, "first", "second")
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))

    def before(self, at: EditContext) -> Call:
        """Measure both, and add the logs of the factors."""
        if is_neutral(self.strength, 0.0):
            return at.call
        marks = [self.first.mask(at), self.second.mask(at)]
        if bool((marks[0] & marks[1]).any()):
            fail(
                ValueRangeError, "second", str(self.second), "keys that are not in the first set",
                "name two sets that have no key in common",
            )  # fmt: skip
        have = masses(at.call, marks)
        swaps = (have > 0).all(0) & queries_of(at, self.queries)
        new = have + at.number(self.strength) * (have.flip(0) - have)
        factors = _log(torch.where(swaps, new / have.clamp(min=1e-30), 1.0))
        return add_bias(at.call, list(zip(factors, marks, strict=True)))
