"""The base of every task: batches, a training loss, a score, an oracle, and the chance level.

A batch marks the positions that want an answer and holds the targets. A task is a frozen value
whose fields are its knobs, so `replace(task, length=128)` is a harder one.
"""

from __future__ import annotations

import random as plain_random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of

# Self or cross attention, causal or not.
PATTERNS: Mapping[str, str] = {
    "cs": "causal self", "ns": "noncausal self", "cc": "causal cross", "nc": "noncausal cross",
}  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """Integers from 0 to `count` - 1."""

    count: int


@dataclass(frozen=True)
class Numbers:
    """Vectors of `width` floats."""

    width: int


Kind = Tokens | Numbers


@dataclass(frozen=True)
class Batch:
    """Rows of one task.

    `x` holds tokens [b, n] or numbers [b, n, c]; `context`, if any, [b, m] or [b, m, c]. `asked`
    [b, n] is true at positions that want an answer, and `y` [b, n] or [b, n, e] holds the answers
    there; its other entries are ignored.
    """

    x: Tensor
    y: Tensor
    asked: Tensor
    context: Tensor | None = None

    def to(self, device: Any) -> Batch:
        """Move the batch to a device."""
        context = None if self.context is None else self.context.to(device)
        return Batch(self.x.to(device), self.y.to(device), self.asked.to(device), context)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A generator of batches that can score answers.

    A subclass defines `inputs`, `outputs` (and `contexts`, for cross-attention), `draw` and
    `oracle`. `patterns` lists the attention patterns that it can be posed in.
    """

    name: ClassVar[str] = ""
    patterns: ClassVar[tuple[str, ...]] = ("cs",)
    # Whether a row counts only if all of its answers are right.
    whole_rows: ClassVar[bool] = False

    @property
    def inputs(self) -> Kind:
        """The kind of `x`."""
        raise NotImplementedError

    @property
    def outputs(self) -> Kind:
        """The kind of an answer."""
        return self.inputs

    @property
    def contexts(self) -> Kind | None:
        """The kind of `context`, or None."""
        return None

    @property
    def chance(self) -> float:
        """The score of a guess that ignores the inputs."""
        return 1 / self.outputs.count if isinstance(self.outputs, Tokens) else 0.0

    @property
    def longest(self) -> int:
        """The greatest number of tokens in `x` or in the context."""
        return int(getattr(self, "length", 0))

    def draw(self, size: int, random: torch.Generator) -> Batch:
        """Draw `size` rows."""
        raise NotImplementedError

    def oracle(self, batch: Batch) -> Tensor:
        """Solve the batch by hand-written code, from x and context alone: like `y`."""
        raise NotImplementedError

    def tests(self) -> dict[str, Task]:
        """Return the tests that a model is scored on, by name; the first is this task itself."""
        return {self.name: self}

    def batch(self, size: int, random: torch.Generator | int = 0) -> Batch:
        """Draw `size` rows from a generator or a seed.

        >>> from regard.tasks import task
        >>> task("induction", period=6).batch(3, 1).x.shape
        torch.Size([3, 12])
        """
        need_integer("size", size)
        if isinstance(random, int):
            random = torch.Generator().manual_seed(random)
        return self.draw(size, random)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Compute cross-entropy, or squared error over variance, at the asked positions."""
        predicted, wanted = outputs[batch.asked], batch.y[batch.asked]
        if isinstance(self.outputs, Tokens):
            return F.cross_entropy(predicted.float(), wanted)
        return (predicted - wanted).square().mean() / variance(wanted)

    def answers(self, outputs: Tensor) -> Tensor:
        """Read answers, like `y`, from model outputs [b, n, classes or numbers]."""
        return outputs.argmax(-1) if isinstance(self.outputs, Tokens) else outputs

    def score(self, answers: Tensor, batch: Batch) -> float:
        """Score answers; 1 is perfect.

        Tokens: accuracy (over rows if `whole_rows`). Numbers: the explained variance, which is
        below 0 for answers worse than the mean.
        """
        if answers.shape != batch.y.shape:
            fail(
                ShapeError, "answers", shape_of(answers), f"{list(batch.y.shape)}, as `y`",
                "pass task.answers(outputs)",
            )  # fmt: skip
        if isinstance(self.outputs, Numbers):
            predicted, wanted = answers[batch.asked].double(), batch.y[batch.asked].double()
            return float(1 - (predicted - wanted).square().mean() / variance(wanted))
        right = (answers == batch.y) | ~batch.asked
        if self.whole_rows:
            return float(right.all(1).double().mean())
        return float(right[batch.asked].double().mean())

    def guess(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Guess without the inputs: answers to other questions, or the mean number."""
        guessed = batch.y.clone()
        if isinstance(self.outputs, Tokens):
            other = self.batch(len(batch.y), random)
            known = other.y[other.asked]
            picked = integers(0, len(known), (int(batch.asked.sum()),), random)
            guessed[batch.asked] = known[picked]
        else:
            guessed[batch.asked] = batch.y[batch.asked].mean(0)
        return guessed

    def knobs(self) -> dict[str, Any]:
        """Return every knob with its value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def spec(self) -> str:
        """Write the task as the command line takes it, with the knobs that differ from defaults.

        >>> from regard.tasks import task
        >>> task("mqar", pairs=8).spec()
        'mqar:pairs=8'
        """
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)
                  if getattr(self, f.name) != f.default]  # fmt: skip
        return ":".join((self.name, *changed))


def variance(x: Tensor) -> Tensor:
    """Return the mean squared distance of rows x [n, e] from their mean."""
    return (x - x.mean(0)).square().mean().clamp_min(1e-12)


def need_integer(name: str, x: object, least: int = 1, most: int | None = None) -> None:
    """Raise unless x is an integer from `least` to `most`."""
    high = most is not None and isinstance(x, int) and x > most
    if not isinstance(x, int) or isinstance(x, bool) or x < least or high:
        upto = "" if most is None else f" and at most {most}"
        fail(
            ValueRangeError, name, repr(x), f"an integer of at least {least}{upto}",
            "change this knob, or the one that bounds it",
        )  # fmt: skip


def need_fraction(name: str, x: object) -> None:
    """Raise unless x is a number from 0 to 1."""
    if not isinstance(x, int | float) or isinstance(x, bool) or not 0 <= x <= 1:
        fail(ValueRangeError, name, repr(x), "a fraction from 0 to 1", "pass 0.5, for example")


def need_even(name: str, x: int) -> None:
    """Raise unless x is even."""
    if x % 2:
        fail(RuleError, name, x, "an even number", f"pass {x + 1}")


# Parts of generators ---------------------------------------------------------------------


def distinct(count: int, out_of: int, size: int, random: torch.Generator) -> Tensor:
    """Draw `count` different integers below `out_of` for each row: [size, count].

    >>> distinct(3, 3, 2, torch.Generator().manual_seed(0)).sort().values.tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    return torch.rand(size, out_of, generator=random).argsort(1)[:, :count]


def integers(low: int, high: int, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Draw integers from `low` to `high` - 1."""
    return torch.randint(low, high, shape, generator=random)


def integer(low: int, high: int, random: torch.Generator) -> int:
    """Draw one integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=random))


def python_random(random: torch.Generator) -> plain_random.Random:
    """Seed a generator of Python's, for draws that torch does not have."""
    return plain_random.Random(int(torch.randint(0, 2**62, (), generator=random)))


def asked_at_end(x: Tensor, answers: Tensor) -> Batch:
    """Ask at the last token of x [b, n] or [b, n, c], for answers [b]; at the last c for [b, c].

    >>> asked_at_end(torch.zeros(2, 3, dtype=torch.long), torch.tensor([7, 8])).y.tolist()
    [[0, 0, 7], [0, 0, 8]]
    """
    answers = answers.view(len(x), -1)
    y = torch.zeros_like(x if x.dim() == 2 else x[..., 0], dtype=torch.long)
    asked = torch.zeros_like(y, dtype=torch.bool)
    y[:, -answers.shape[1] :], asked[:, -answers.shape[1] :] = answers, True
    return Batch(x, y, asked)


def answers_at_end(batch: Batch, answers: Tensor) -> Tensor:
    """Return answers [b] for the last token, as `y` holds them: [b, n]."""
    y = torch.zeros_like(batch.y)
    y[:, -1] = answers
    return y


def next_after_match(x: Tensor) -> Tensor:
    """Return, at each position, the token after the first occurrence of the same token in x [b, n].

    >>> next_after_match(torch.tensor([[5, 7, 6, 8, 5]])).tolist()
    [[7, 6, 8, 5, 7]]
    """
    n = x.shape[1]
    same = x[:, :, None] == x[:, None, :]  # [b, n, n]
    first = same.to(torch.uint8).argmax(-1)
    return x.gather(1, (first + 1).clamp_max(n - 1))
