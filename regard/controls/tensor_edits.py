"""Edits of queries, keys, values and outputs: scale, project, or mix with a second branch."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit, apply, edits_of
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.text_tokens import read_sets
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ShapeError, fail, shape_of
from regard.core.result import Result
from regard.core.value import value
from regard.run.runner import run

PARTS = ("q", "k", "v", "out")
POINT = {"q": "queries", "k": "keys", "v": "values", "out": "output"}


class _TensorEdit(AttentionEdit):
    """Base of edits of one tensor x [b, heads, tokens, size]."""

    part: str
    strength: Strength
    tokens: TokenSet | None
    neutral: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            fail(RuleError, "part", repr(self.part), f"one of {PARTS}", "name what to change")
        object.__setattr__(self, "strength", strength_of(self.strength))
        read_sets(self, optional=("tokens",))

    @property
    def for_all_queries(self) -> bool:
        """Return whether the tensor is shared by all queries: keys and values are."""
        return self.part in ("k", "v")

    def changed(self, x: Tensor, number: Tensor, at: EditContext) -> Tensor:
        """Return x changed at a strength that broadcasts to it."""
        raise NotImplementedError

    def _edit(self, x: Tensor, at: EditContext) -> Tensor:
        side = "queries" if self.part in ("q", "out") else "keys"
        limit, number = at.limit, at.number(self.strength)
        if side == "keys":
            limit = _of_key_heads(limit, at)
            if isinstance(number, Tensor) and number.shape[-1] > 1:
                fail(
                    CapabilityError, "strength", "one for each step", f"one number: {self.part} of "
                    "all tokens is in one call", "edit q, the scores or the output by step",
                )  # fmt: skip
        chosen = limit if self.tokens is None else limit & self.tokens.mask(at, side)
        strength = at.tensor(self.strength)[..., None]
        new = self.changed(x.float() if x.dtype != torch.float64 else x, strength, at).to(x.dtype)
        made: Tensor = torch.where(chosen[..., None], new, x)
        return made

    def before(self, at: EditContext) -> Call:
        """Change q, k or v."""
        if self.part == "out" or is_neutral(self.strength, self.neutral):
            return at.call
        x: Tensor = getattr(at.call, self.part)
        return at.call.replace(**{self.part: self._edit(x, at)})

    def after(self, at: EditContext, result: Result) -> Result:
        """Change the output."""
        if self.part != "out" or is_neutral(self.strength, self.neutral):
            return result
        return result._replace(out=self._edit(result.out, at))


def _of_key_heads(limit: Tensor, at: EditContext) -> Tensor:
    """Return where an edit of keys acts, [b or 1, g or 1, 1]: key heads serve groups of queries."""
    if limit.shape[1] == 1 or at.call.g == at.call.h:
        return limit
    groups = limit.unflatten(1, (at.call.g, -1))
    if not bool((groups.any(2) == groups.all(2)).all()):
        fail(
            CapabilityError, "where['heads']", "a part of the heads that share a key head",
            f"groups of {at.call.h // at.call.g} heads", "name all heads of a group",
        )  # fmt: skip
    whole: Tensor = groups.any(2)
    return whole


@value
class ScaleTensor(_TensorEdit):
    """Multiply q, k, v or the output ("out") by `strength`; 1 changes nothing, 0 gives zeros.

    >>> ScaleTensor("out", 2.0).tokens is None
    True
    """

    part: str = "out"
    strength: Strength = 1.0
    tokens: TokenSet | None = None
    law: ClassVar[str] = "x becomes strength x: scaling a head is scaling its columns of W_O"
    neutral: ClassVar[float] = 1.0

    @property
    def point(self) -> str:
        """Return what it changes."""
        return POINT[self.part]

    def changed(self, x: Tensor, number: Tensor, at: EditContext) -> Tensor:
        """Multiply."""
        return x * number


@value
class RemoveDirection(_TensorEdit):
    """Remove `strength` times the component of q, k, v or the output along a direction [d].

    >>> RemoveDirection("out", torch.tensor([3.0, 4.0])).direction.tolist()
    [0.6000000238418579, 0.800000011920929]
    """

    part: str
    direction: Tensor
    strength: Strength = 1.0
    tokens: TokenSet | None = None
    law: ClassVar[str] = "at strength 1 nothing is left along the direction"

    def __post_init__(self) -> None:
        super().__post_init__()
        x = self.direction
        if not isinstance(x, Tensor) or x.dim() != 1 or not float(x.norm()) > 0:
            fail(ShapeError, "direction", shape_of(x), "a vector [d] that is not 0", "pass one")
        size = float(x.float().norm())
        if abs(size - 1) > 1e-6:  # already a unit vector when read from a file
            object.__setattr__(self, "direction", x.float() / size)

    @property
    def point(self) -> str:
        """Return what it changes."""
        return POINT[self.part]

    def changed(self, x: Tensor, number: Tensor, at: EditContext) -> Tensor:
        """Subtract the component along the direction."""
        way = self.direction.to(x)
        if len(way) != x.shape[-1]:
            fail(
                ShapeError, "direction", f"size {len(way)}", f"size {x.shape[-1]}, as {self.part}",
                "pass a direction of the head size",
            )  # fmt: skip
        return x - number * (x @ way)[..., None] * way


@value
class MixBranch(AttentionEdit):
    """Mix with a second branch, which has its own edits: out + strength (branch - out).

    0 changes nothing, 1 is the branch, a negative strength moves away from it (guidance).

    >>> from regard.controls.score_edits import Forbid
    >>> MixBranch(Forbid("Paris"), -0.5).edits[0].point
    'scores'
    """

    edits: tuple[AttentionEdit, ...]
    strength: Strength = 1.0
    point: ClassVar[str] = "output"
    law: ClassVar[str] = "linear in strength; 1 is the branch alone"

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", edits_of(self.edits))
        object.__setattr__(self, "strength", strength_of(self.strength))

    def sets(self) -> tuple[TokenSet, ...]:
        """Return the sets of the branch."""
        return tuple(x for edit in self.edits for x in edit.sets())

    def after(self, at: EditContext, result: Result) -> Result:
        """Run the branch, and mix."""
        if is_neutral(self.strength, 0.0):
            return result
        call, known = apply(self.edits, replace(at))
        branch = run(call)
        for edit, own in zip(self.edits, known, strict=True):
            branch = edit.after(own, branch)
        number = at.tensor(self.strength)[..., None]
        mixed = result.out + number.to(result.out) * (branch.out - result.out)
        return result._replace(out=torch.where(at.limit[..., None], mixed, result.out))
