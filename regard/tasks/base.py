"""What every task is: batches, a loss to train on, a score, an oracle, and chance.

A batch asks at some places and says what is wanted there. A task is a frozen value: its fields are
its knobs, so `replace(task, length=128)` is the harder one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of

# How attention is asked to look: at itself or at a context, at everything or at the past.
PATTERNS: Mapping[str, str] = {
    "cs": "causal self", "ns": "noncausal self", "cc": "causal cross", "nc": "noncausal cross",
}  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """Whole numbers from 0 up to `count`, which is left out."""

    count: int


@dataclass(frozen=True)
class Numbers:
    """Vectors of `width` numbers."""

    width: int


Kind = Tokens | Numbers


@dataclass(frozen=True)
class Batch:
    """Rows of one task.

    `x` are tokens [b, n] or numbers [b, n, c], `context` [b, m] or [b, m, c] likewise where there
    is one. `asked` [b, n] is true at places that want an answer, `y` [b, n] or [b, n, e] holds the
    answers there; what it holds elsewhere means nothing.
    """

    x: Tensor
    y: Tensor
    asked: Tensor
    context: Tensor | None = None

    def to(self, device: Any) -> Batch:
        """Return the same batch on a device."""
        context = None if self.context is None else self.context.to(device)
        return Batch(self.x.to(device), self.y.to(device), self.asked.to(device), context)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A generator of batches that knows how good an answer is.

    A subclass gives `inputs`, `outputs` (and `contexts`, where there is a context), `draw`,
    `oracle` and `chance`. Its `patterns` are the ways of looking that it can be posed to.
    """

    name: ClassVar[str] = ""
    patterns: ClassVar[tuple[str, ...]] = ("cs",)
    # Whether a row counts only when all of its answers are right.
    whole_rows: ClassVar[bool] = False

    @property
    def inputs(self) -> Kind:
        """What `x` holds."""
        raise NotImplementedError

    @property
    def outputs(self) -> Kind:
        """What an answer is."""
        return self.inputs

    @property
    def contexts(self) -> Kind | None:
        """What `context` holds, where there is one."""
        return None

    @property
    def chance(self) -> float:
        """What a guesser scores who looks at nothing."""
        return 0.0

    @property
    def longest(self) -> int:
        """How many tokens x, or the context, has at most."""
        return int(getattr(self, "length", 0))

    def draw(self, size: int, random: torch.Generator) -> Batch:
        """Draw `size` rows."""
        raise NotImplementedError

    def oracle(self, batch: Batch) -> Tensor:
        """Answer by a solution written by hand, from x and context alone: like `y`."""
        raise NotImplementedError

    def tests(self) -> dict[str, Task]:
        """What a model is scored on: a name for each, the first being this task itself."""
        return {self.name: self}

    def batch(self, size: int, random: torch.Generator | int = 0) -> Batch:
        """Draw `size` rows, by a generator or a seed.

        >>> from regard.tasks import task
        >>> task("induction", period=6).batch(3, 1).x.shape
        torch.Size([3, 12])
        """
        need_whole("size", size)
        if isinstance(random, int):
            random = torch.Generator().manual_seed(random)
        return self.draw(size, random)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, or squared error over its variance, at the places that are asked."""
        given, wanted = outputs[batch.asked], batch.y[batch.asked]
        if isinstance(self.outputs, Tokens):
            return F.cross_entropy(given.float(), wanted)
        return (given - wanted).square().mean() / spread(wanted)

    def answers(self, outputs: Tensor) -> Tensor:
        """Read answers, like `y`, from what a model gives: [b, n, kinds of tokens or numbers]."""
        return outputs.argmax(-1) if isinstance(self.outputs, Tokens) else outputs

    def score(self, answers: Tensor, batch: Batch) -> float:
        """Score answers: 1 is perfect.

        Tokens: the share that is right (of rows, where only whole rows count). Numbers: the share
        of their variance that is explained, which is below 0 for answers worse than the mean.
        """
        if answers.shape != batch.y.shape:
            fail(
                ShapeError, "answers", shape_of(answers), f"{list(batch.y.shape)}, as `y`",
                "pass task.answers(outputs), or what task.oracle gives",
            )  # fmt: skip
        if isinstance(self.outputs, Numbers):
            given, wanted = answers[batch.asked].double(), batch.y[batch.asked].double()
            return float(1 - (given - wanted).square().mean() / spread(wanted))
        right = (answers == batch.y) | ~batch.asked
        if self.whole_rows:
            return float(right.all(1).double().mean())
        return float(right[batch.asked].double().mean())

    def guess(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Answer without looking: by answers to other questions, or by the mean number."""
        guessed = batch.y.clone()
        if isinstance(self.outputs, Tokens):
            other = self.batch(len(batch.y), random)
            known = other.y[other.asked]
            picked = whole(0, len(known), (int(batch.asked.sum()),), random)
            guessed[batch.asked] = known[picked]
        else:
            guessed[batch.asked] = batch.y[batch.asked].mean(0)
        return guessed

    def knobs(self) -> dict[str, Any]:
        """Return every knob with its value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def said(self) -> str:
        """Write the task as the command line takes it, with the knobs that were turned.

        >>> from regard.tasks import task
        >>> task("mqar", pairs=8).said()
        'mqar:pairs=8'
        """
        turned = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)
                  if getattr(self, f.name) != f.default]  # fmt: skip
        return ":".join((self.name, *turned))


def spread(x: Tensor) -> Tensor:
    """Mean squared distance from the mean of all rows of x [n, e]."""
    return (x - x.mean(0)).square().mean().clamp_min(1e-12)


def need_whole(name: str, x: object, least: int = 1, most: int | None = None) -> None:
    """Raise unless x is a whole number from `least` to `most`."""
    high = most is not None and isinstance(x, int) and x > most
    if not isinstance(x, int) or isinstance(x, bool) or x < least or high:
        upto = "" if most is None else f" and at most {most}"
        fail(
            ValueRangeError, name, repr(x), f"a whole number of at least {least}{upto}",
            "turn this knob, or the one that bounds it",
        )  # fmt: skip


def need_share(name: str, x: object) -> None:
    """Raise unless x is a number from 0 to 1."""
    if not isinstance(x, int | float) or isinstance(x, bool) or not 0 <= x <= 1:
        fail(ValueRangeError, name, repr(x), "a share from 0 to 1", "take 0.5, say")


def need_even(name: str, x: int) -> None:
    """Raise unless x is even."""
    if x % 2:
        fail(RuleError, name, x, "an even number", f"take {x + 1}")


# What generators are made of ---------------------------------------------------------------------


def some_of(count: int, out_of: int, size: int, random: torch.Generator) -> Tensor:
    """Draw `count` different whole numbers below `out_of` for each row: [size, count].

    >>> some_of(3, 3, 2, torch.Generator().manual_seed(0)).sort().values.tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    return torch.rand(size, out_of, generator=random).argsort(1)[:, :count]


def whole(low: int, high: int, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Draw whole numbers from low up to high, which is left out."""
    return torch.randint(low, high, shape, generator=random)


def one(low: int, high: int, random: torch.Generator) -> int:
    """Draw one whole number from low to high, both of which may come."""
    return int(torch.randint(low, high + 1, (), generator=random))


def nothing_asked(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return zeros to fill answers into, and a mask in which nothing is asked yet."""
    return torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)


def asked_at_end(x: Tensor, answers: Tensor) -> Batch:
    """Ask at the last token of x [b, n] or [b, n, c], for answers [b]; at the last c for [b, c].

    >>> asked_at_end(torch.zeros(2, 3, dtype=torch.long), torch.tensor([7, 8])).y.tolist()
    [[0, 0, 7], [0, 0, 8]]
    """
    answers = answers.view(len(x), -1)
    y, asked = nothing_asked(x if x.dim() == 2 else x[..., 0].long())
    y[:, -answers.shape[1] :], asked[:, -answers.shape[1] :] = answers, True
    return Batch(x, y, asked)


def next_after_match(x: Tensor) -> Tensor:
    """At each place: the token that follows the first showing of the same token in x [b, n].

    >>> next_after_match(torch.tensor([[5, 7, 6, 8, 5]])).tolist()
    [[7, 6, 8, 5, 7]]
    """
    n = x.shape[1]
    same = x[:, :, None] == x[:, None, :]  # [b, n, n]
    first = same.to(torch.uint8).argmax(-1)
    return x.gather(1, (first + 1).clamp_max(n - 1))
