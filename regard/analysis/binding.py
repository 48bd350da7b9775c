"""Object binding: pairwise probes of whether two patches are of one object, and ablations.

For embeddings x, y [.., d] of two patches, the score of "same object" is

    linear     w . (x + y) + b
    diagonal   x^T diag(w) y + b
    quadratic  (W x) . (W y) + b,   W [k, d] with k much smaller than d,

all the same for (x, y) and (y, x). Where the quadratic form wins, the code can be read by a dot
product, as attention does (Li 2025).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


class PairProbe(nn.Module):
    """Base of probes on pairs: forward gives the score of x and y [.., d]."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Score the pairs."""
        raise NotImplementedError

    def fit(
        self, x: Tensor, objects: Tensor, *, steps: int = 300, rate: float = 1e-2, pairs: int = 512
    ) -> PairProbe:
        """Learn from embeddings x [images, patches, d] and their objects [images, patches].

        Pairs are drawn within an image, as many of one object as of two.
        """
        if objects.shape != x.shape[:2]:
            fail(
                ShapeError, "objects", shape_of(objects), f"{list(x.shape[:2])}, as x",
                "name the object of every patch",
            )  # fmt: skip
        adam = torch.optim.Adam(self.parameters(), rate)
        for _ in range(steps):
            one, other, same = balanced(x, objects, pairs)
            loss = F.binary_cross_entropy_with_logits(self(one, other), same.to(x))
            adam.zero_grad()
            loss.backward()
            adam.step()
        return self

    def accuracy(self, x: Tensor, objects: Tensor, pairs: int = 4000) -> float:
        """Return the accuracy on balanced pairs."""
        one, other, same = balanced(x, objects, pairs)
        with torch.no_grad():
            return float(((self(one, other) > 0) == same).float().mean())


def balanced(x: Tensor, objects: Tensor, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pairs within images, half of them of one object: [pairs, d] twice, and which [pairs]."""
    image = torch.randint(len(x), (8 * pairs,))
    first, second = torch.randint(x.shape[1], (2, 8 * pairs))
    there = first != second
    same = objects[image, first] == objects[image, second]
    half = pairs // 2
    chosen = [(there & kind).nonzero()[:half, 0] for kind in (same, ~same)]
    few = min(map(len, chosen))
    if few == 0:
        fail(
            ValueRangeError, "objects", "patches of one kind of pair alone",
            "images with pairs of one object, and of two", "pass images with several objects",
        )  # fmt: skip
    index = torch.cat([each[:few] for each in chosen])
    return x[image[index], first[index]], x[image[index], second[index]], same[index]


class LinearPair(PairProbe):
    """w . (x + y) + b: can tell what patches are, not whether they belong together."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.say = nn.Linear(dim, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Score the sum."""
        return self.say(x + y)[..., 0]


class DiagonalPair(PairProbe):
    """x^T diag(w) y + b: a product along the axes that the model happens to have."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Score the product."""
        return (x * self.w * y).sum(-1) + self.b


@method(
    "is_same_object",
    call="import torch\n"
    "from regard.analysis.binding import QuadraticPair, without\n"
    "x, objects = torch.randn(20, 49, 64), torch.randint(0, 3, (20, 49))\n"
    "probe = QuadraticPair(64, rank=8).fit(x, objects, steps=10)\n"
    "blind = without(x, probe.w)  # project what it reads out of the embeddings",
)
class QuadraticPair(PairProbe):
    """(W x) . (W y) + b, with W [rank, d].

    >>> probe = QuadraticPair(16, rank=4)
    >>> probe(torch.randn(3, 16), torch.randn(3, 16)).shape
    torch.Size([3])
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        if not 1 <= rank <= dim:
            fail(ValueRangeError, "rank", rank, f"from 1 to {dim}", "pass dim // 8")
        self.w = nn.Parameter(torch.randn(rank, dim) / dim**0.5)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Score the product of what W reads."""
        return ((x @ self.w.T) * (y @ self.w.T)).sum(-1) + self.b


class PointwisePair(PairProbe):
    """The control: classify each patch alone, then compare the classes."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.say = nn.Linear(dim, classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log odds that two patches, each classed alone, are of one class."""
        same = (self.say(x).softmax(-1) * self.say(y).softmax(-1)).sum(-1)
        return torch.logit(same, eps=1e-6)


def row_space(w: Tensor) -> Tensor:
    """Return an orthonormal basis [k, d] of the rows of W [k, d]."""
    basis: Tensor = torch.linalg.qr(w.detach().T).Q.T
    return basis


def without(x: Tensor, w: Tensor, share: float = 1.0) -> Tensor:
    """Remove a fraction of the row space of W [k, d] from embeddings x [.., d].

    The probe of that W is blind then; another probe may still find the signal.

    >>> without(torch.tensor([3.0, 4.0]), torch.tensor([[2.0, 0.0]])).tolist()
    [0.0, 4.0]
    """
    if not 0 <= share <= 1:
        fail(ValueRangeError, "share", share, "from 0 to 1", "take 1")
    basis = row_space(w)
    return x - share * (x @ basis.T) @ basis


def shuffled(x: Tensor, w: Tensor) -> Tensor:
    """Permute the row-space part of W among the patches of each image [images, patches, d]."""
    basis = row_space(w)
    inside = (x @ basis.T) @ basis
    order = torch.rand(x.shape[:2]).argsort(1)
    return x - inside + inside.gather(1, order[..., None].expand_as(inside))


def binding_directions(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions of the differences of matching patches of two like objects [pairs, d].

    If an embedding is a feature plus a binding part, the difference holds the binding alone; few
    directions then carry it. Gives the share of each, falling [r], and the directions [r, d].
    """
    _, sizes, directions = torch.linalg.svd(x - y, full_matrices=False)
    return sizes.square() / sizes.square().sum(), directions


def guidance(scores: Tensor, probe: PairProbe, x: Tensor) -> Tensor:
    """Correlation of heads' scores [h, n, n] with the probe's, over pairs of patches x [n, d]."""
    with torch.no_grad():
        told = probe(x[:, None], x[None]).flatten()
    rows = torch.cat([told[None].to(scores), scores.flatten(1)])
    return torch.corrcoef(rows)[0, 1:]
