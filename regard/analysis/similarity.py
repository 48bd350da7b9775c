"""Similarity of heads and layers: distances between maps, clusters, keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, need
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.models.site import Site
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.run.reducers import Reducer
from regard.run.reference import score_matrix
from regard.run.row_blocks import RowBlock
from regard.run.rows import rows_of
from regard.run.survey import survey

MEASURES = ("js", "cosine")


@dataclass(frozen=True)
class Distances:
    """Distances of heads two by two, [heads, heads], 0 on the diagonal."""

    heads: list[tuple[Site, int]]
    values: Tensor
    measure: str

    def nearest(self, count: int = 5) -> list[tuple[tuple[Site, int], tuple[Site, int], float]]:
        """Return the pairs of heads that are most alike."""
        upper = self.values + torch.full_like(self.values, torch.inf).tril()
        order = upper.flatten().argsort()[: min(count, math.comb(len(self.heads), 2))].tolist()
        width = len(self.heads)
        return [
            (self.heads[x // width], self.heads[x % width], float(upper.flatten()[x]))
            for x in order
        ]

    def clusters(self, count: int) -> list[list[tuple[Site, int]]]:
        """Groups of heads: the two nearest groups are joined (mean distance) until `count` stay."""
        if not 1 <= count <= len(self.heads):
            fail(
                ValueRangeError, "count", count, f"1 to {len(self.heads)} groups",
                "ask for fewer groups than heads",
            )  # fmt: skip
        groups = [[i] for i in range(len(self.heads))]
        between = self.values.clone().fill_diagonal_(torch.inf)
        sizes = torch.ones(len(groups), dtype=between.dtype)
        while len(groups) > count:
            i, j = divmod(int(between.argmin()), len(groups))
            i, j = min(i, j), max(i, j)
            joined = (sizes[i] * between[i] + sizes[j] * between[j]) / (sizes[i] + sizes[j])
            between[i], between[:, i] = joined, joined
            between[i, i] = torch.inf
            keep = [x for x in range(len(groups)) if x != j]
            between, groups[i] = between[keep][:, keep], groups[i] + groups[j]
            sizes[i] += sizes[j]
            sizes, groups = sizes[keep], [groups[x] for x in keep]
        return [[self.heads[x] for x in sorted(group)] for group in groups]

    def layers(self) -> Tensor:
        """Return the mean distance between the heads of two layers, [layers, layers]."""
        sites = list(dict.fromkeys(site for site, _ in self.heads))
        member = torch.tensor([sites.index(site) for site, _ in self.heads])
        one_hot = torch.nn.functional.one_hot(member, len(sites)).to(self.values.dtype)
        count = one_hot.sum(0)
        return one_hot.T @ self.values @ one_hot / (count[:, None] * count)


class HeadMaps(Stage):
    """Keep calls, so that heads of all layers can be compared row by row; linear in tokens.

    with regard.attach(model, maps := HeadMaps()):
        model(ids)
    maps.distances().nearest()
    """

    def __init__(self, where: Any = None, *, rows: int = 512) -> None:
        super().__init__(where)
        self.rows, self.calls = rows, list[Call]()

    def see(self, call: Call, result: Result) -> None:
        """Keep the call."""
        if isinstance(call.site, Site):
            self.calls.append(call)

    def distances(self, measure: str = "js", block: int = 64) -> Distances:
        """Mean distance of the rows of heads two by two, over up to `rows` queries, evenly spread.

        "js" is the square root of the Jensen-Shannon divergence in bits, 0 to 1; "cosine" is
        1 - cosine of the rows. Some rows of all heads are made at a time, [heads, block, m].
        """
        if measure not in MEASURES:
            fail(RuleError, "measure", repr(measure), f"one of {MEASURES}", "name a measure")
        if not self.calls:
            fail(RuleError, "maps", "nothing seen", "a forward", "run the model inside the with")
        if len({(c.n, c.m) for c in self.calls}) != 1:
            fail(
                CapabilityError, "model", "layers of unlike lengths", "one number of tokens",
                "choose the layers of one stage with where=",
            )  # fmt: skip
        heads = [(c.site, h) for c in self.calls for h in range(c.h)]
        total = torch.zeros(len(heads), len(heads), dtype=torch.float64)
        n, counted = self.calls[0].n, 0
        spread = torch.linspace(0, n - 1, min(n, self.rows)).round().long().unique()
        for start in range(0, len(spread), block):
            some = spread[start : start + block]
            maps = torch.cat([rows_of_heads(c, some) for c in self.calls])  # [heads, b * rows, m]
            total += _apart(maps, measure)
            counted += maps.shape[1]
        return Distances(heads, total / counted, measure)


def rows_of_heads(call: Call, rows: Tensor) -> Tensor:
    """Return the weights of some queries, [h, b * rows, m]."""
    kept = []
    for row in rows.tolist():
        keep = _Keep(call)
        one = rows_of(call, slice(row, row + 1))
        survey(one.q, one.k, one.v, one.rule, want=(), reducers=[keep],
               q_positions=one.q_positions, k_positions=one.k_positions)  # fmt: skip
        kept.append(keep.found)
    return torch.stack(kept, 2).flatten(1, 2)


class _Keep(Reducer):
    """The weights of one query, [h, b, m]."""

    def __init__(self, call: Call) -> None:
        self.found = torch.zeros(call.h, call.b, call.m, dtype=torch.float64)

    def take(self, block: RowBlock) -> None:
        """Keep the row."""
        keys = slice(block.cols.start, min(block.cols.stop, self.found.shape[2]))
        weights = block.weights[0, : keys.stop - keys.start]
        self.found[block.h, block.b, keys] = weights.double().cpu()


def _apart(maps: Tensor, measure: str) -> Tensor:
    """Sum over rows of the distance of heads two by two; maps [heads, rows, m]."""
    if measure == "cosine":
        unit = maps / maps.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        return (1 - torch.einsum("hrm,grm->hgr", unit, unit)).sum(-1)
    found = torch.zeros(len(maps), len(maps), dtype=maps.dtype)
    own = torch.special.entr(maps).sum(-1)  # [heads, rows]
    for h in range(len(maps)):
        middle = torch.special.entr((maps[h] + maps[h:]) / 2).sum(-1)
        bits = (middle - (own[h] + own[h:]) / 2).clamp(min=0) / math.log(2)
        found[h, h:] = found[h:, h] = bits.sqrt().sum(-1)
    return found


@dataclass(frozen=True)
class Joint:
    """Queries and keys of a head in one space, weights unchanged: q [n, d], k [m, d]."""

    q: Tensor
    k: Tensor
    scale: float
    shift: Tensor

    def places(self) -> tuple[Tensor, Tensor]:
        """Return places in the plane by principal components: [n, 2] and [m, 2]."""
        both = torch.cat([self.q, self.k])
        both = both - both.mean(0)
        _, _, vt = torch.linalg.svd(both, full_matrices=False)
        flat = both @ vt[:2].T
        return flat[: len(self.q)], flat[len(self.q) :]

    def neighborhoods(self, near: int = 15, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Places in the plane that keep the `near` nearest together (UMAP): [n, 2] and [m, 2]."""
        umap = need("umap", "explain", "draws neighborhoods")
        both = torch.cat([self.q, self.k]).float().cpu().numpy()
        made = umap.UMAP(n_neighbors=min(near, len(both) - 1), random_state=seed, n_jobs=1)
        flat = torch.from_numpy(made.fit_transform(both)).double()
        return flat[: len(self.q)], flat[len(self.q) :]


@method(
    "attentionviz",
    call="import torch\n"
    "from regard.analysis.similarity import joint_embedding\n"
    "q, k = torch.randn(2, 20, 8)  # of one head, after rotation\n"
    "print(joint_embedding(q, k).places()[0].shape)",
)
def joint_embedding(
    q: Tensor, k: Tensor, scales: Sequence[float] | None = None, sample: int = 512
) -> Joint:
    """Move keys to where queries are, and scale both, so that near means looked at (Yeh 2023).

    q [n, d], k [m, d] after rotation. k' = (k + mean q - mean k) / c and q' = c q leave softmax
    weights as they are, since a row's scores all change by one number; c is the scale whose dot
    products follow the distances best (rank correlation), c = 1 among those tried.
    """
    q, k = q.double(), k.double()
    shift = q.mean(0) - k.mean(0)
    moved = k + shift
    tried = sorted({1.0, *(scales or [2.0 ** (x / 2) for x in range(-6, 7)])})
    some_q = q[torch.linspace(0, len(q) - 1, min(len(q), sample)).long()]
    some_k = moved[torch.linspace(0, len(k) - 1, min(len(k), sample)).long()]
    dots = _ranks((some_q @ some_k.T).flatten())
    fits = []
    for c in tried:
        near = _ranks(-torch.cdist(c * some_q, some_k / c).flatten())
        fits.append(float(torch.corrcoef(torch.stack([dots, near]))[0, 1]))
    best = tried[max(range(len(tried)), key=lambda i: (fits[i], tried[i] == 1.0))]
    return Joint(best * q, moved / best, best, shift)


def _ranks(x: Tensor) -> Tensor:
    return x.argsort().argsort().double()


@dataclass(frozen=True)
class Neuron:
    """One query of a head, laid open: products [m, d], scores [m] and weights [m]."""

    query: Tensor
    keys: Tensor
    products: Tensor
    scores: Tensor
    weights: Tensor


@method(
    "bertviz",
    call="import torch\n"
    "from regard.core.call import Call\n"
    "from regard.analysis.similarity import neuron_view\n"
    "q, k, v = torch.randn(3, 1, 2, 9, 8)\n"
    "print(neuron_view(Call.of(q, k, v), head=0, row=5).weights)",
)
def neuron_view(call: Call, head: int, row: int) -> Neuron:
    """What each feature adds to one query's scores: q_i * k_j, then the scores of the rule (scale,
    biases, soft cap), then its weights, as they are in the call.
    """
    q, k = call.q.double(), call.k.double()
    call = call.replace(q=q, k=k, v=call.v.double())
    weights = closed_weights(call, "neuron_view")[0, head, row]
    scores = score_matrix(call)[0][0, head, row]
    keys = expand_heads(k, call.h)[0, head]
    return Neuron(q[0, head, row], keys, q[0, head, row] * keys, scores, weights)
