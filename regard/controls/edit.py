"""The base class of edits: one change of attention, at one point in a call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail
from regard.core.partial import wide
from regard.core.result import Result
from regard.core.score import LowRankBias
from regard.core.value import Value

POINTS = ("queries", "keys", "values", "scores", "weights", "output")
# Subtracted from the score of a forbidden pair: exp(-3000) is 0 in every dtype, and 3000 over a
# scale of 1 / 16 is still finite in half precision.
FORBIDDEN = 3000.0


class AttentionEdit(Value):
    """One change of attention. `point` names what it changes, `law` states what holds exactly.

    Both are class variables, or properties where they depend on the fields of the edit.

    An edit changes the call (`before`) or its result (`after`), only in the heads, rows and
    queries of `at.limit`; elsewhere, and at its neutral strength, it changes nothing. Tensors and
    sets are kept as fields, so that the edit can be saved.
    """

    @property
    def point(self) -> str:
        """Return what it changes: one or several of `POINTS`."""
        return "scores"

    @property
    def law(self) -> str:
        """Return the law that holds of it exactly."""
        return ""

    @property
    def for_all_queries(self) -> bool:
        """Return whether it changes what all queries of a call share, so that it has no phase."""
        return False

    def before(self, at: EditContext) -> Call:
        """Return the changed call of `at`."""
        return at.call

    def after(self, at: EditContext, result: Result) -> Result:
        """Return the changed result of the call of `at`."""
        return result

    def changes(self, at: EditContext) -> Tensor:
        """Return which queries it changes, bool [b or 1, h or 1, n or 1], for the receipt."""
        queries = getattr(self, "queries", None)
        if isinstance(queries, TokenSet):
            return at.limit & queries.mask(at, "queries")
        return at.limit

    def sets(self) -> tuple[TokenSet, ...]:
        """Return the token sets it concerns, for the receipt."""
        return tuple(x for _, x in self.fields() if isinstance(x, TokenSet))


def edits_of(x: Any) -> tuple[AttentionEdit, ...]:
    """Check one or more edits, and return them as a tuple."""
    many = (x,) if isinstance(x, AttentionEdit) else tuple(x) if isinstance(x, list | tuple) else ()
    if not many or not all(isinstance(one, AttentionEdit) for one in many):
        fail(
            RuleError,
            "edits",
            repr(x)[:80],
            "one or more edits",
            'pass AddBias(Phrase("Paris"), 2)',
        )
    return many


def apply(edits: tuple[AttentionEdit, ...], at: EditContext) -> tuple[Call, list[EditContext]]:
    """Return the call after all edits, and the context of each."""
    call, known = at.call, []
    for edit in edits:
        own = replace(at, call=call)
        call = edit.before(own)
        known.append(own)
    return call, known


def changed_queries(edits: tuple[AttentionEdit, ...], at: EditContext) -> Tensor:
    """Return which queries any of the edits changes."""
    made = torch.zeros_like(at.limit)
    for edit in edits:
        made = made | edit.changes(at)
    return made


def named_sets(edits: tuple[AttentionEdit, ...], at: EditContext) -> dict[str, Tensor]:
    """Return the sets of the edits as keys, without those that have no keys at this site."""
    made = {}
    for x in dict.fromkeys(x for edit in edits for x in edit.sets()):
        try:
            made[x.label] = x.mask(at)
        except CapabilityError:
            continue
    return made


def add_bias(call: Call, parts: list[tuple[Tensor, Tensor]]) -> Call:
    """Add biases to the scores of a call: the product of each pair (queries, keys) is added.

    Queries are [b or 1, h or 1, n or 1], keys [b or 1, h or 1, m]. They are stored in extra
    channels of q and k, so that every executor supports them, and no [n, m] tensor is built.

    >>> q = torch.randn(1, 2, 3, 4)
    >>> louder = add_bias(Call.of(q, q, q), [(torch.ones(1, 1, 3), torch.tensor([[[0.0, 0, 2]]]))])
    >>> louder.rule.score.steps[0].u.shape
    torch.Size([1, 1, 3, 1])
    """
    n, dtype = call.n, wide(call.q.dtype)
    left = [x.to(dtype).expand(*x.shape[:2], n) for x, _ in parts]
    right = [x.to(dtype) for _, x in parts]
    u, v = (_stacked(many, call.q.device) for many in (left, right))
    return call.replace(rule=call.rule.replace(score=call.rule.score + LowRankBias(u, v)))


def _stacked(many: list[Tensor], device: torch.device) -> Tensor:
    b, h = (max(x.shape[axis] for x in many) for axis in (0, 1))
    return torch.stack([x.to(device).expand(b, h, -1) for x in many], -1).contiguous()


def forbid(call: Call, queries: Tensor, keys: Tensor) -> Call:
    """Set the weight of keys to 0: [b or 1, h or 1, m], for queries bool [b or 1, h or 1, n or 1].

    A query that may attend to nothing else is left unchanged.

    >>> q = torch.randn(1, 1, 3, 4)
    >>> less = forbid(Call.of(q, q, q), torch.ones(1, 1, 1).bool(), torch.tensor([[[True, 0, 0]]]))
    >>> len(less.rule.score.steps)
    1
    """
    return add_bias(call, [(-FORBIDDEN * queries, keys)])
