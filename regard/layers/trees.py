"""Cross-attention that descends a tree of its context, and reads a few nodes (TCA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.support import Everything, Padding
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.stack import Block
from regard.run.reference import weight_matrix


@dataclass(frozen=True)
class SummaryTree:
    """Summaries of a context, level by level from the leaves [b, m, dim] to the root's children.

    `real` marks nodes with a real leaf under them.
    """

    levels: tuple[Tensor, ...]
    real: tuple[Tensor, ...]


@dataclass(frozen=True)
class Walk:
    """The nodes that queries [b, n] read, [b, n, s, dim]: which are real, and their places.

    `level` [s] and `place` [b, n, s] name each node, `log_chance` [b, n] is that of the path.
    """

    nodes: Tensor
    real: Tensor
    level: Tensor
    place: Tensor
    log_chance: Tensor
    entropy: Tensor


@method(
    "tree_cross_attention",
    call="import torch, regard\nfrom regard.layers.trees import TreeCrossAttention\n"
    "layer = TreeCrossAttention(64, heads=4)\n"
    "out, walk = layer(torch.randn(2, 5, 64), torch.randn(2, 128, 64))",
)
class TreeCrossAttention(nn.Module):
    """A query descends from the root to one group of leaves, keeping the branches not taken.

    The context [b, m, dim], ordered so that neighbors belong together, is the leaves of a tree with
    `branches` to a node and `leaves` in a last group; a node is the mean of its children after they
    attended to one another. At each level the query's attention to the children, averaged over
    heads, chooses one: the best, or while training one sampled from it. The query then attends to
    the nodes it kept: `(branches - 1) depth + leaves`, which together cover all leaves.

    >>> layer = TreeCrossAttention(16, heads=2)
    >>> out, walk = layer(torch.randn(1, 3, 16), torch.randn(1, 20, 16))
    >>> out.shape, walk.nodes.shape[2]
    (torch.Size([1, 3, 16]), 6)
    """

    def __init__(self, dim: int, heads: int, *, branches: int = 2, leaves: int = 2) -> None:
        super().__init__()
        need_size("branches", branches, 2)
        need_size("leaves", leaves)
        self.branches, self.leaves = branches, leaves
        self.summarize = Block(Attention(dim, heads))
        self.cross = Attention(dim, heads, context_dim=dim)
        self.norms = nn.ModuleList((nn.RMSNorm(dim), nn.RMSNorm(dim)))
        self.map = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def tree(self, context: Tensor, padding: Tensor | None = None) -> SummaryTree:
        """Summarize a context bottom-up; the leaves get no gradient through the summaries."""
        if context.dim() != 3:
            fail(ShapeError, "context", shape_of(context), "[b, m, dim]", "add the batch axis")
        m, size = context.shape[1], self.leaves
        while size < m:
            size *= self.branches
        real = context.new_ones(context.shape[:2], dtype=torch.bool) if padding is None else padding
        levels, marks = [F.pad(context, (0, 0, 0, size - m))], [F.pad(real, (0, size - m))]
        group = self.leaves
        while levels[-1].shape[1] > 1:
            children = levels[-1].detach().unflatten(1, (-1, group)).flatten(0, 1)
            there = marks[-1].unflatten(1, (-1, group)).flatten(0, 1)
            mixed = self.summarize(children, padding=there) * there[..., None]
            mean = mixed.sum(1) / there.sum(1, keepdim=True).clamp_min(1)
            levels.append(mean.unflatten(0, (len(context), -1)))
            marks.append(there.any(1).unflatten(0, (len(context), -1)))
            group = self.branches
        return SummaryTree(tuple(levels[:-1]), tuple(marks[:-1]))

    def preferences(self, x: Tensor, nodes: Tensor, real: Tensor) -> Tensor:
        """Weigh nodes [b, n, s, dim] for queries x [b, n, dim], heads averaged: [b, n, s]."""
        q = self.cross.queries(x.flatten(0, 1)[:, None])
        k, v = self.cross.keys(nodes.flatten(0, 1))
        call = Call.of(q, k, v, Rule(Padding(real.flatten(0, 1))))
        weights = weight_matrix(call)[0][:, :, 0].mean(1)
        preferred: Tensor = weights.unflatten(0, x.shape[:2]).to(x.dtype)
        return preferred

    def walk(self, x: Tensor, tree: SummaryTree) -> Walk:
        """Descend for each query of x [b, n, dim], and keep the nodes not taken."""
        b, n, _ = x.shape
        at = torch.zeros(b, n, dtype=torch.long, device=x.device)
        nodes, marks, levels, places = [], [], [], []
        chance, spread = x.new_zeros(b, n), x.new_zeros(b, n)
        for level in reversed(range(len(tree.levels))):
            group = self.leaves if level == 0 else self.branches
            place = at[..., None] * group + torch.arange(group, device=x.device)
            seen, real = _taken(tree.levels[level], place), _taken(tree.real[level], place)
            if level == 0:
                keep = torch.arange(group, device=x.device).expand_as(place)
            else:
                likely = self.preferences(x, seen, real)
                one = _drawn(likely) if self.training else likely.argmax(-1)
                chance = chance + likely.gather(-1, one[..., None])[..., 0].clamp_min(1e-9).log()
                spread = spread - (likely * likely.clamp_min(1e-9).log()).sum(-1)
                at = place.gather(-1, one[..., None])[..., 0]
                others = torch.arange(group - 1, device=x.device)
                keep = others + (others >= one[..., None])
            wide = keep[..., None].expand(-1, -1, -1, x.shape[2])
            nodes.append(seen.gather(2, wide))
            marks.append(real.gather(2, keep))
            places.append(place.gather(2, keep))
            levels += [level] * keep.shape[2]
        return Walk(
            torch.cat(nodes, 2), torch.cat(marks, 2), torch.tensor(levels, device=x.device),
            torch.cat(places, 2),
            chance, spread,
        )  # fmt: skip

    def read(self, x: Tensor, nodes: Tensor, real: Tensor | None = None) -> Tensor:
        """Attend from x [b, n, dim] to nodes of its own, [b, n, s, dim], and map."""
        support = Everything() if real is None else Padding(real.flatten(0, 1))
        q = self.cross.queries(self.norms[0](x).flatten(0, 1)[:, None])
        call = Call.of(q, *self.cross.keys(nodes.flatten(0, 1)), Rule(support))
        seen = self.cross.attend(call)[:, :, 0].flatten(1)
        x = x + self.cross.to_out(seen).unflatten(0, x.shape[:2])
        mapped: Tensor = x + self.map(self.norms[1](x))
        return mapped

    def whole(self, x: Tensor, context: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend to all leaves, as the paper's second loss does: [b, n, dim]."""
        nodes = context[:, None].expand(-1, x.shape[1], -1, -1)
        real = None if padding is None else padding[:, None].expand(-1, x.shape[1], -1)
        return self.read(x, nodes, real)

    def forward(
        self, x: Tensor, context: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Walk]:
        """Read the context [b, m, dim] through its tree: [b, n, dim], and the walk."""
        walk = self.walk(self.norms[0](x), self.tree(context, padding))
        return self.read(x, walk.nodes, walk.real), walk

    @staticmethod
    def walking_loss(walk: Walk, reward: Tensor, curiosity: float = 0.01) -> Tensor:
        """Return the REINFORCE loss of paths with reward [b, n], with an entropy bonus."""
        return -(walk.log_chance * reward.detach() + curiosity * walk.entropy).mean()


def _taken(x: Tensor, place: Tensor) -> Tensor:
    """Gather nodes x [b, m(, dim)] at places [b, n, s]."""
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    taken: Tensor = x[rows, place]
    return taken


def _drawn(likely: Tensor) -> Tensor:
    """Sample one of each row."""
    flat = torch.multinomial(likely.detach().flatten(0, 1).clamp_min(1e-9), 1)
    drawn: Tensor = flat[:, 0].unflatten(0, likely.shape[:2])
    return drawn
