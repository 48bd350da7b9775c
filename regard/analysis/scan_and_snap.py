"""How one layer of attention learns which tokens tell the next one: it scans, then snaps.

The model of Tian 2023, in tokens: the last token m is the query, x_1 .. x_T are looked at,

    b_l  ~  count_l exp(z_ml),   u = b / |b|,   logits = u Y,

with attention logits Z [queries, tokens] and decoder Y [tokens, next]. A token is distinct where
one next token alone goes with it, common where several do. Gradient descent lowers z of common
tokens and raises that of distinct ones, the more so the more often they come ("scan"), until the
mixture freezes ("snap").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method
from regard.probes.position_heads import ranks


class ScanAndSnap(nn.Module):
    """One layer of attention over counts of tokens, and a decoder.

    `counts` [b, tokens] may be those of a sequence, or the likelihoods P(l | m, n) that counts tend
    to as sequences grow.

    >>> model = ScanAndSnap(queries=2, tokens=6, following=3)
    >>> model(torch.tensor([0, 1]), torch.ones(2, 6)).shape
    torch.Size([2, 3])
    """

    def __init__(self, queries: int, tokens: int, following: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros(queries, tokens))
        self.y = nn.Parameter(torch.zeros(tokens, following))

    def attention(self, query: Tensor, counts: Tensor) -> Tensor:
        """Return the weight of each token [b, tokens]: softmax over every place it stands at."""
        return torch.softmax(self.z[query] + counts.log(), -1)

    def forward(self, query: Tensor, counts: Tensor) -> Tensor:
        """Return logits of the next token [b, following]."""
        return F.normalize(self.attention(query, counts), dim=-1) @ self.y

    def entropy(self, query: Tensor, counts: Tensor) -> Tensor:
        """Return the entropy of attention over tokens [b], in nats."""
        return torch.special.entr(self.attention(query, counts)).sum(-1)


def likelihood(queries: int, following: int, own: int, shared: int) -> Tensor:
    """Draw P(l | m, n) [queries, following, tokens]: what stands before each next token.

    Next token n belongs to the query n % queries. The first `shared` tokens are common to all, and
    `own` more are distinct to each next token; how often each comes is random.

    >>> table = likelihood(queries=2, following=4, own=3, shared=2)
    >>> table.shape, bool(table.sum(-1).flatten()[0].isclose(torch.tensor(1.0)))
    (torch.Size([2, 4, 14]), True)
    """
    table = torch.zeros(queries, following, shared + following * own)
    for n in range(following):
        start = shared + n * own
        table[n % queries, n, start : start + own] = torch.rand(own) + 0.2
        table[n % queries, n, :shared] = torch.rand(shared) + 0.2
    return table / table.sum(-1, keepdim=True).clamp_min(1e-9)


def sampler(table: Tensor, rows: int, length: int) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Return a function that draws texts of `length` tokens from P(l | m, n), `rows` at a time.

    It gives queries [rows], counts [rows, tokens] and next tokens [rows], as `descend` takes them.

    >>> query, counts, following = sampler(likelihood(2, 4, 3, 2), rows=5, length=20)()
    >>> query.shape, counts.sum(-1).tolist()
    (torch.Size([5]), [20.0, 20.0, 20.0, 20.0, 20.0])
    """
    pairs = table.any(-1).nonzero()

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        query, following = pairs[torch.randint(0, len(pairs), (rows,))].T
        tokens = torch.multinomial(table[query, following], length, replacement=True)
        counts = torch.zeros(rows, table.shape[-1])
        counts.scatter_add_(1, tokens, torch.ones(rows, length))
        return query, counts, following

    return draw


@dataclass(frozen=True)
class Growth:
    """What became of z: by class, and against how often tokens come.

    `common` and `distinct` hold z of (query, token) pairs; `order` the mean rank correlation of z
    with P(l | m, n) among the distinct tokens of each next token; `entropies` the mean entropy of
    attention before training and after each report.
    """

    common: Tensor
    distinct: Tensor
    order: float
    entropies: list[float]

    @property
    def as_said(self) -> float:
        """Fraction of tokens whose z has the sign that the theory predicts."""
        right = int((self.common < 0).sum()) + int((self.distinct > 0).sum())
        return right / (len(self.common) + len(self.distinct))


def descend(
    model: ScanAndSnap,
    batch: Callable[[], tuple[Tensor, Tensor, Tensor]],
    steps: int,
    rate_y: float,
    rate_z: float,
    report: int = 50,
) -> list[float]:
    """Train by plain gradient descent with two rates; give the entropy every `report` steps.

    `batch()` gives queries [b], counts [b, tokens] and next tokens [b].
    """
    descent = torch.optim.SGD(
        [{"params": [model.y], "lr": rate_y}, {"params": [model.z], "lr": rate_z}]
    )
    entropies = []
    for step in range(steps):
        query, counts, following = batch()
        if step % report == 0:
            entropies.append(float(model.entropy(query, counts).mean().detach()))
        loss = F.cross_entropy(model(query, counts), following)
        descent.zero_grad()
        loss.backward()
        descent.step()
    query, counts, _ = batch()
    return [*entropies, float(model.entropy(query, counts).mean().detach())]


@method(
    "scan_and_snap",
    call="from regard.analysis.scan_and_snap import ScanAndSnap, descend, growth, likelihood\n"
    "from regard.analysis.scan_and_snap import sampler\n"
    "table = likelihood(queries=2, following=4, own=5, shared=3)\n"
    "model = ScanAndSnap(2, 23, 4)\n"
    "entropies = descend(model, sampler(table, 16, 50), 100, rate_y=1.0, rate_z=0.1)\n"
    "print(growth(model, table, entropies).as_said)",
)
def growth(model: ScanAndSnap, likelihood: Tensor, entropies: list[float]) -> Growth:
    """Measure z by class; `likelihood` P(l | m, n) [queries, following, tokens].

    >>> likelihood = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]])
    >>> model = ScanAndSnap(1, 3, 2)
    >>> model.z.data = torch.tensor([[0.3, -0.2, 0.3]])
    >>> growth(model, likelihood, []).as_said
    1.0
    """
    if likelihood.dim() != 3 or likelihood.shape[::2] != model.z.shape:
        fail(
            ShapeError, "likelihood", shape_of(likelihood),
            f"[{model.z.shape[0]}, following, {model.z.shape[1]}]", "give P(l | m, n)",
        )  # fmt: skip
    z = model.z.detach()
    there = likelihood > 0
    several = there.sum(1)  # next tokens that go with each token, for each query
    orders = []
    for m, n in there.any(-1).nonzero().tolist():
        own = there[m, n] & (several[m] == 1)
        if likelihood[m, n, own].unique().numel() > 1:
            orders.append(rank_correlation(z[m, own], likelihood[m, n, own]))
    order = sum(orders) / len(orders) if orders else float("nan")
    return Growth(z[several > 1], z[several == 1], order, entropies)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation of two rows [n]; ties take the mean of their ranks.

    >>> round(rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 5.0, 6.0])), 6)
    1.0
    """
    centered = [r - r.mean() for r in (ranks(x[:, None])[:, 0] for x in (a, b))]
    return float((centered[0] * centered[1]).sum() / (centered[0].norm() * centered[1].norm()))
