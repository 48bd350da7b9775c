"""How much a pair (query, key) matches: a match, and steps that change it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.readable import can_be_read
from regard.core.value import Value, value
from regard.core.value_text import Show


class At(NamedTuple):
    """Where the pairs are: integer tensors that broadcast to [b, h, n, m].

    `row` and `col` are places in the q and k of the call, `i` and `j` are positions; they differ
    when queries start late (decoding) or keys were evicted. `allowed` (bool, or None for all) is
    only there for steps that need whole rows.
    """

    b: Tensor
    h: Tensor
    row: Tensor
    col: Tensor
    i: Tensor
    j: Tensor
    allowed: Tensor | None = None


Change = Callable[[Tensor, At], Tensor]


class ScoreMod(Value):
    """Something that changes scores, elementwise unless `needs_row`.

    A step is bound to a call's q and k, and then maps scores to scores at given places. What it
    makes of q and k it finds again at `at.b`, `at.h`, `at.row` and `at.col`; tables that come with
    the step belong to a `PlaceStep`. So executors may bind it to a block of queries and keys. A
    step that can be carried by extra channels of q and k says so in `fold`.
    """

    needs_row: ClassVar[bool] = False
    # Whether positions matter to it, beyond places in the q and k of the call.
    asks_positions: ClassVar[bool] = True
    # Whether its tensors hold an entry for each query or key of the call: a call over some of the
    # queries or keys would read other entries.
    by_token: ClassVar[bool] = False
    # Whether `+` is its sign, as that of a bias.
    adds: ClassVar[bool] = True

    @property
    def may_remove(self) -> bool:
        """Whether it may give a pair a score of -inf, which removes it.

        A step of the library removes by what its tensors hold; looking there would make a GPU
        wait, and of other steps nothing is known.
        """
        if not type(self).__module__.startswith("regard.core.") or self.functions():
            return True
        return self.memo("may remove", lambda: any(map(_has_removed, self.tensors())))

    def bind(self, q: Tensor, k: Tensor) -> Change:
        """Prepare for q [b, h, n, d] and k [b, h, m, d]; give a function of (scores, at)."""
        raise NotImplementedError

    def fold(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """Return q and k (key heads not expanded) whose product holds the step, or None.

        `scale` multiplies that product later.
        """
        return None

    def contents(self) -> Hashable:
        """Return what of its numbers decides who can run it: where it differs, a plan is made anew.

        Shapes and types are known without it; most steps have nothing to add.
        """
        return None

    def placed(self, q: Tensor, k: Tensor) -> ScoreMod | None:
        """Return the same step as one that knows only where a pair is (a `PlaceStep`), or None.

        What it took from q and k is then in its tensors, where a compiled kernel can find it.
        """
        return None

    @property
    def folds(self) -> bool:
        """Whether `fold` gives an answer."""
        return type(self).fold is not ScoreMod.fold

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Raise a `RegardError` if the step cannot serve a call of this shape."""


class Match(Value):
    """The first score of a pair, from its query and key."""

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float] | None:
        """Return q, k and scale whose scaled product is the match, or None if there are none."""
        return None

    @property
    def is_product(self) -> bool:
        """Whether `prepare` gives an answer."""
        return type(self).prepare is not Match.prepare

    def between(self, q: Tensor, k: Tensor) -> Tensor:
        """Return scores of q [b, h, n, d] with k [b, h, m, d] (heads expanded): [b, h, n, m]."""
        made = self.prepare(q, k)
        assert made is not None
        query, key, scale = made
        return (query * scale) @ key.transpose(-1, -2)  # scaling q is cheaper than scores

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Raise a `RegardError` if the match cannot serve a call of this shape."""

    def as_score(self, show: Show) -> str:
        """Write the score that begins with this match."""
        return f"Score({show(self)})"


@value
class Score(Value):
    """A match and the steps after it, written `Dot() + Alibi(slopes) >> SoftCap(30)`.

    >>> from regard.core.score import Dot, KeyWeights, SoftCap
    >>> Dot(0.5) >> SoftCap(30)
    Dot(0.5) >> SoftCap(30)
    """

    match: Match
    steps: tuple[ScoreMod, ...] = ()

    def __add__(self, bias: ScoreMod) -> Score:
        return self >> bias

    def __rshift__(self, step: ScoreMod) -> Score:
        if not isinstance(step, ScoreMod):
            fail(
                RuleError,
                "score",
                shape_of(step),
                "a step such as Alibi, RelativeBias, SoftCap",
                "wrap a function as ScoreStep(function)",
            )
        return Score(self.match, (*self.steps, step))

    @property
    def needs_row(self) -> bool:
        """Whether some step must see whole rows of scores."""
        return any(s.needs_row for s in self.steps)

    def contents(self) -> Hashable:
        """Return what of the numbers of the steps decides who can run the score."""
        return tuple(s.contents() for s in self.steps) if self.tensors() else None

    def bind(self, q: Tensor, k: Tensor) -> Change:
        """Bind every step to q and k (heads expanded)."""
        changes: list[Change] = []
        for step, keeps in zip(self.steps, self.keeps, strict=True):
            one = step.bind(q, k)
            changes.append(keeping(one) if keeps else one)

        def change(scores: Tensor, at: At) -> Tensor:
            for each in changes:
                scores = each(scores, at)
            return scores

        return change

    @property
    def keeps(self) -> tuple[bool, ...]:
        """For each step, whether an earlier one may have removed pairs that it must not touch."""
        found, removed = [], False
        for step in self.steps:
            found.append(removed and not step.needs_row)
            # Asked only where it matters, since the answer may be a look at every entry.
            removed = removed or (step is not self.steps[-1] and step.may_remove)
        return tuple(found)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Check the match and every step."""
        self.match.check(b, h, n, m, d)
        for step in self.steps:
            step.check(b, h, n, m, d)

    def _text(self, show: Show) -> str:
        said, stepped = self.match.as_score(show), False
        for step in self.steps:
            if step.adds:  # which binds tighter than >>
                said = f"({said}) + {show(step)}" if stepped else f"{said} + {show(step)}"
                stepped = False
            else:
                said, stepped = f"{said} >> {show(step)}", True
        return said


def keeping(change: Change) -> Change:
    """Return a change of scores that leaves removed pairs (-inf) removed, without a gradient.

    A cap would bring them back, and a factor has a gradient of score times something: 0 x inf.

    >>> half = keeping(lambda scores, at: scores.tanh())
    >>> half(torch.tensor([-torch.inf, 0.0]), None).tolist()
    [-inf, 0.0]
    """

    def kept(scores: Tensor, at: At) -> Tensor:
        gone = scores == -torch.inf
        return change(scores.masked_fill(gone, 0.0), at).masked_fill(gone, -torch.inf)

    return kept


def _has_removed(x: Tensor) -> bool:
    if not x.is_floating_point():
        return False
    if x.device.type != "cpu" or not can_be_read(x):
        return True
    return bool((x.detach() == -torch.inf).any())


def need_number(name: str, x: object, *, above: float | None = None) -> None:
    """Raise unless x is a finite number (above a bound)."""
    good = (
        isinstance(x, int | float) and not isinstance(x, bool) and x == x and abs(x) != float("inf")
    )
    if not good or (above is not None and float(x) <= above):  # type: ignore[arg-type]
        want = "a finite number" + (f" above {above:g}" if above is not None else "")
        fail(ValueRangeError, name, shape_of(x), want, f"pass {name}=1.0")


def need_tensor(name: str, x: object, axes: str) -> None:
    """Raise unless x is a tensor without NaN whose axes are those named in `axes`, "[b, h]" say."""
    rank = len([a for a in axes.strip("[]").split(",") if a.strip()])
    if not isinstance(x, Tensor) or x.dim() != rank:
        fail(ShapeError, name, shape_of(x), f"a tensor {axes}", "reshape it, or add leading axes")
    looked_at = x.is_floating_point() and not x.requires_grad and can_be_read(x)
    if looked_at and bool(x.isnan().any()):
        fail(
            ValueRangeError,
            name,
            "NaN in it",
            "numbers (−inf removes a pair)",
            "look where the NaN comes from",
        )


def need_heads(name: str, have: int, h: int) -> None:
    """Raise unless a tensor is made for one head or for h."""
    if have not in (1, h):
        fail(
            ShapeError,
            name,
            f"{have} heads",
            f"1 or {h} heads, as the queries have",
            "give one entry for each query head",
        )


def per_head(x: Tensor, at: At, *rest: Tensor) -> Tensor:
    """Index x [h or 1, ...] by head and the given places."""
    return x[(at.h if x.shape[0] > 1 else at.h * 0, *rest)]


def distance(at: At) -> Tensor:
    """Position of the key minus that of the query."""
    return at.j - at.i


def as_float(x: Tensor, like: Tensor) -> Tensor:
    """Convert a table to the dtype and device of the scores."""
    return x.to(device=like.device, dtype=like.dtype) if torch.is_tensor(x) else x
