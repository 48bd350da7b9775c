"""Averages over keys of a function of query and key, which random heads can learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.weigh import Relu
from regard.run.api import attend
from regard.tasks.base import Batch, Kind, Numbers, Task, need_integer
from regard.tasks.registry import register


@register("key_average")
@dataclass(frozen=True, kw_only=True)
class KeyAverage(Task):
    """Points, and a query: the mean over points of (query · point)^power (beta · point).

    With `power` 0 the answer is a linear mean of the points. beta is the same in all rows.

    >>> KeyAverage(points=5).batch(3).y.shape
    torch.Size([3, 1, 1])
    """

    patterns = ("nc",)
    width: int = 16
    points: int = 16
    power: int = 1

    def __post_init__(self) -> None:
        need_integer("width", self.width, 2)
        need_integer("points", self.points)
        need_integer("power", self.power, 0)

    @property
    def inputs(self) -> Kind:
        return Numbers(self.width)

    @property
    def outputs(self) -> Kind:
        return Numbers(1)

    @property
    def contexts(self) -> Kind:
        return Numbers(self.width)

    @property
    def longest(self) -> int:
        return self.points

    def draw(self, size: int, random: torch.Generator) -> Batch:
        x, points = (
            F.normalize(torch.randn(size, n, self.width, generator=random), dim=2)
            for n in (1, self.points)
        )
        asked = torch.ones(size, 1, dtype=torch.bool)
        batch = Batch(x, x[..., :1], asked, points)
        return Batch(x, self.oracle(batch), asked, points)

    def oracle(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        fixed = torch.Generator().manual_seed(self.width)
        beta = F.normalize(torch.randn(self.width, generator=fixed), dim=0)
        match = (batch.x @ batch.context.mT) ** self.power  # [b, 1, m]
        # About unit variance at any width.
        scale = float(self.width) ** ((self.power + 1) / 2)
        return scale * match @ (batch.context @ beta)[..., None] / batch.context.shape[1]


@method("random_feature_attention_theory")
class RandomHeads:
    """Features of many frozen random heads: mean over keys of relu(x̃ᵀ W_m x̃_i) x̃_i, x̃ = [x; 1].

    Only the values are trained, by ridge regression on these features. `biased` adds to every W
    the matrix that matches query and key, so that its mean is not zero.

    >>> heads = RandomHeads(width=4, heads=10)
    >>> heads.features(torch.randn(3, 1, 4), torch.randn(3, 6, 4)).shape
    torch.Size([3, 50])
    """

    def __init__(self, width: int, heads: int, *, biased: bool = False, seed: int = 0) -> None:
        need_integer("heads", heads)
        random = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(heads, width + 1, width + 1, generator=random) / 2
        if biased:
            self.weights[:, range(width), range(width)] += width**0.5

    def features(self, x: Tensor, points: Tensor) -> Tensor:
        """Return features [b, heads (width + 1)] of queries [b, 1, width], points [b, m, width]."""
        if x.dim() != 3 or x.shape[1] != 1:
            fail(RuleError, "x", list(x.shape), "one query a row, [b, 1, width]", "add a dimension")
        x, points = (F.pad(t, (0, 1), value=1.0) for t in (x, points))
        q = torch.einsum("bnd,hde->bhne", x, self.weights)
        k = points[:, None]
        # relu attention of unnormalized scores; its mean over keys in place of its sum.
        seen = attend(q, k, k, Rule(score=Dot(scale=1.0), weigh=Relu())) / points.shape[1]
        return seen.flatten(1)


class RandomNet:
    """Features of a two-layer network with a random first layer, over query and points joined.

    >>> net = RandomNet(width=4, points=6, count=50)
    >>> net.features(torch.randn(3, 1, 4), torch.randn(3, 6, 4)).shape
    torch.Size([3, 50])
    """

    def __init__(self, width: int, points: int, count: int, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        size = width * (points + 1)
        self.weights = torch.randn(size + 1, count, generator=random) / 2

    def features(self, x: Tensor, points: Tensor) -> Tensor:
        """Return features [b, count] of queries [b, 1, width] and points [b, m, width]."""
        side_by_side = torch.cat((x, points), 1).flatten(1)
        return (F.pad(side_by_side, (0, 1), value=1.0) @ self.weights).relu()


def ridge_error(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], weights: tuple[float, ...]
) -> float:
    """Return the least test error over ridge weights, as a fraction of the test targets' variance.

    `train` and `test` are features [n, f] and targets [n].

    >>> x = torch.eye(3)
    >>> round(ridge_error((x, torch.arange(3.0)), (x, torch.arange(3.0)), (1e-6,)), 3)
    0.0
    """
    (a, y), (b, z) = ((f.double(), t.double()) for f, t in (train, test))
    gram, best = a @ a.mT, float("inf")
    scale = float(gram.diagonal().mean())
    for weight in weights:
        ridge = gram + weight * scale * torch.eye(len(gram), dtype=gram.dtype)
        guess = b @ (a.mT @ torch.linalg.solve(ridge, y))
        best = min(best, float((guess - z).square().mean() / (z - z.mean()).square().mean()))
    return best
