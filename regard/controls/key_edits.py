"""Edits of keys: add extra keys with a log-weight, or replace keys."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.edit import FORBIDDEN, AttentionEdit, add_bias
from regard.controls.score_edits import Forbid, RaisedScores
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ShapeError, fail, shape_of
from regard.core.keys import Dense
from regard.core.score import LowRankBias
from regard.core.score.dense import DenseBias
from regard.core.support import Extended
from regard.core.value import Value, value

# Parts of steps that have an entry for each key, and its axis.
BY_KEY = {LowRankBias: ("v", 2), DenseBias: ("bias", 3), RaisedScores: ("chosen", 2)}


class FoundKeys(NamedTuple):
    """Keys k [b, g, x, d] and values v [b, g, x, e], and a log-weight [b or 1, h or 1, x] or None.

    A log-weight of -inf removes a key.
    """

    k: Tensor
    v: Tensor
    log_weight: Tensor | None = None


class KeySource(Value):
    """A source of extra keys: another row of the batch, another run, or given tensors."""

    @abstractmethod
    def find(self, at: EditContext) -> FoundKeys | None:
        """Return the keys for a call; None for no keys, which changes nothing."""


@value
class GivenKeys(KeySource):
    """Tensors k [b or 1, g, x, d] and v [b or 1, g, x, e], the same at every site.

    >>> print(GivenKeys(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)))
    GivenKeys(<float32 1x2x3x4>, <float32 1x2x3x4>)
    """

    k: Tensor
    v: Tensor

    def __post_init__(self) -> None:
        good = isinstance(self.k, Tensor) and isinstance(self.v, Tensor) and self.k.dim() == 4
        if not good or self.v.dim() != 4 or self.k.shape[:3] != self.v.shape[:3]:
            fail(
                ShapeError, "keys", f"{shape_of(self.k)} and {shape_of(self.v)}",
                "k [b or 1, g, x, d] and v [b or 1, g, x, e]", "give one value for each key",
            )  # fmt: skip

    def find(self, at: EditContext) -> FoundKeys:
        """Repeat them for the rows of the batch."""
        b, like = at.call.b, at.call.q
        return FoundKeys(*(x.to(like).expand(b, -1, -1, -1) for x in (self.k, self.v)))


@value
class OtherRows(KeySource):
    """The keys of other rows of the batch: of all rows, or of those given.

    With guidance, only rows of the same branch count, in the same order.

    >>> OtherRows().rows is None
    True
    """

    rows: tuple[int, ...] | None = None

    def find(self, at: EditContext) -> FoundKeys | None:
        """Concatenate the keys of the other rows."""
        call, b = at.call, at.call.b
        branches = len(at.forward.branches or (None,))
        if b % branches:
            fail(CapabilityError, "batch", f"{b} rows", f"rows for {branches} branches", "fill up")
        size = b // branches
        if size < 2:
            return None
        index = torch.arange(b, device=at.device).view(branches, size)
        chosen = range(size) if self.rows is None else self.rows
        if self.rows is not None and not all(0 <= x < size for x in self.rows):
            fail(
                RuleError, "rows", list(self.rows), f"rows 0 to {size - 1}", "count from 0",
            )  # fmt: skip
        others = torch.stack([index[:, list(chosen)].repeat_interleave(size, 0)]).view(b, -1)
        k, v = (x[others].transpose(1, 2).flatten(2, 3) for x in (call.k, call.v))
        own = (others == torch.arange(b, device=at.device)[:, None]).repeat_interleave(call.m, 1)
        weight = torch.zeros(b, 1, k.shape[2], device=at.device).masked_fill(
            own[:, None], -torch.inf
        )
        return FoundKeys(k, v, weight)


@value
class ExtraKeys(AttentionEdit):
    """Let queries also attend to extra keys, in one softmax, with their weight times e^strength.

    A strength of -inf is not needed: leave the edit out instead.

    >>> ExtraKeys(OtherRows(), 0.0).point
    'keys'
    """

    source: KeySource
    strength: Strength = 0.0
    point: ClassVar[str] = "keys"
    law: ClassVar[str] = "one softmax over own and extra keys; odds of the extra ones times e^s"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength))

    def before(self, at: EditContext) -> Call:
        """Append the keys."""
        found = self.source.find(at)
        if found is None:
            return at.call
        call, extra = at.call, found.k.shape[2]
        made = append_keys(call, found)
        own = torch.zeros(1, 1, call.m, device=at.device)
        ones = torch.ones(1, 1, extra, device=at.device)
        number = at.tensor(self.strength)
        parts = [(number, _cat(own, ones))]
        limit = at.limit
        if not bool(limit.all()):
            parts.append((-FORBIDDEN * ~limit, _cat(own, ones)))
        if found.log_weight is not None:
            weight = found.log_weight.clamp(min=-FORBIDDEN)
            parts.append((torch.ones(1, 1, 1, device=at.device), _cat(own, weight)))
        if len(parts) == 1 and is_neutral(self.strength, 0.0):
            return made
        return add_bias(made, parts)


def append_keys(call: Call, found: FoundKeys) -> Call:
    """Return the call with more keys appended, which every query may attend to.

    >>> q = torch.randn(1, 2, 3, 4)
    >>> append_keys(Call.of(q, q, q), FoundKeys(q, q)).m
    6
    """
    _need_fitting(call, found)
    k = torch.cat((call.k, found.k.to(call.k)), 2)
    v = torch.cat((call.v, found.v.to(call.v)), 2)
    extra, at_keys = found.k.shape[2], call.k_positions
    last = call.m if at_keys is None else int(at_keys.max()) + 1
    if at_keys is not None:
        line = torch.arange(last, last + extra, device=at_keys.device)
        at_keys = torch.cat((at_keys, line.expand(*at_keys.shape[:-1], extra)), -1)
    # Entries for the earlier keys say nothing about the new ones.
    score = call.rule.score
    score = score.replace(steps=tuple(_lengthened(x, call.m, extra) for x in score.steps))
    rule = call.rule.replace(support=Extended(call.rule.support, last), score=score)
    return call.replace(keys=Dense(k, v, at_keys), rule=rule)


def _lengthened(step: Any, m: int, extra: int) -> Any:
    """Extend a step of a score to `extra` more keys, on which it has no effect."""
    name, axis = BY_KEY.get(type(step), (None, 0))
    x: Tensor | None = getattr(step, name) if name else None
    if x is None or x.shape[axis] != m:
        return step
    more = x.new_zeros(*x.shape[:axis], extra, *x.shape[axis + 1 :])
    return step.replace(**{str(name): torch.cat((x, more), axis)})


@value
class ReplaceKeys(AttentionEdit):
    """Attend to keys from elsewhere instead of the call's own, in chosen heads and rows.

    >>> ReplaceKeys(OtherRows((0,))).law
    'own keys get weight 0'
    """

    source: KeySource
    point: ClassVar[str] = "keys"
    law: ClassVar[str] = "own keys get weight 0"

    def before(self, at: EditContext) -> Call:
        """Append the keys, and forbid the call's own."""
        call = ExtraKeys(self.source).before(at)
        if call is at.call:
            return call
        own = torch.zeros(1, 1, call.m, dtype=torch.bool, device=at.device)
        own[..., : at.call.m] = True
        return add_bias(call, [(-FORBIDDEN * at.limit, own)])


def only_keys(keys: TokenSet, queries: TokenSet | None = None) -> Forbid:
    """Allow queries to attend only to these keys.

    >>> from regard.controls.text_tokens import Phrase
    >>> only_keys(Phrase("Paris")).keys
    NotIn(Phrase('Paris'))
    """
    return Forbid(~keys, queries)


def _cat(a: Tensor, b: Tensor) -> Tensor:
    rows, heads = (max(a.shape[x], b.shape[x]) for x in (0, 1))
    return torch.cat((a.expand(rows, heads, -1), b.expand(rows, heads, -1).to(a)), 2)


def _need_fitting(call: Call, found: FoundKeys) -> None:
    b, g, _, d, e = call.keys.shape
    k, v = found.k, found.v
    if (k.shape[0], k.shape[1], k.shape[3], v.shape[3]) != (b, g, d, e):
        fail(
            ShapeError, "extra keys", f"{shape_of(k)} and {shape_of(v)}",
            f"k [{b}, {g}, x, {d}] and v [{b}, {g}, x, {e}]", "take keys of the same site",
        )  # fmt: skip
