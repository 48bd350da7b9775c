"""Policies that compute less of a prompt: each head attends to some tiles of the causal triangle.

A policy chooses the tiles of each head (`tiles`); `keep` is the share of the causal pairs. The
diagonal and the first tile are always computed, short prompts and decoding are dense, and every
key is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.core.support import Everything, Tiles
from regard.models.attach import hook_of
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.calibration import run_texts
from regard.policies.kinds import Calibrated, Prefill, Select
from regard.policies.registry import register
from regard.policies.selecting import taken
from regard.policies.tiling import causal_tiles, tile_places
from regard.run.counting import multiply
from regard.run.reference import weight_matrix
from regard.run.runner import run


def last_rows(call: Call, rows: int = 64) -> Tensor:
    """Compute the weights of the last queries, [b, h, rows, m]."""
    rows = min(rows, call.n)
    rule = call.rule.shift(call.n - rows)
    return weight_matrix(call.replace(q=call.q[:, :, call.n - rows :], rule=rule))[0]


def lines(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the weights [b, h, r, m] of the last r queries by key and by distance, [b, h, m] each.

    Distances run from 0 (the diagonal) to m - 1.

    >>> w = torch.zeros(1, 1, 2, 4); w[0, 0, 0, 1] = w[0, 0, 1, 2] = 1.0
    >>> columns, slashes = lines(w)
    >>> columns.tolist(), slashes.tolist()
    ([[[0.0, 1.0, 1.0, 0.0]]], [[[0.0, 2.0, 0.0, 0.0]]])
    """
    b, h, r, m = weights.shape
    flipped = weights.flip(2, 3)  # row i, counted from the last up: key 0 is the last
    slashes = weights.new_zeros(b, h, m)
    for i in range(r):
        slashes[..., : m - i] += flipped[:, :, i, i:]
    return weights.sum(2), slashes


def affordable(score: Tensor, cost: Tensor, budget: float) -> Tensor:
    """Choose the best-scored columns that `budget` pays for: bool, shaped like score [b, h, c].

    >>> affordable(torch.tensor([[[5.0, 1.0, 3.0]]]), torch.tensor([2.0, 2.0, 2.0]), 4).tolist()
    [[[True, False, True]]]
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    paid = cost[order].cumsum(-1) <= budget
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, paid)


def best_in_block(x: Tensor, block: int) -> Tensor:
    """Return the maximum of each block of a nonnegative x [..., m].

    >>> best_in_block(torch.tensor([1.0, 3.0, 2.0]), 2).tolist()
    [3.0, 2.0]
    """
    short = -x.shape[-1] % block
    found: Tensor = torch.nn.functional.pad(x, (0, short)).unflatten(-1, (-1, block)).amax(-1)
    return found


@register("a_shape")
@dataclass
class AShape(Prefill):
    """Compute the first tile and a window before each query, the same for all heads.

    The window is as wide as the share allows: w = T (1 - sqrt(1 - keep)) of T tiles.
    (MInference, Jiang et al. 2024; StreamingLLM's shape)
    """

    def tiles(self, call: Call, keep: float) -> Tensor:
        """Choose the tiles near the diagonal."""
        rows, cols = tile_places(call, self.block)
        wide = max(1, int(len(cols) * (1 - (1 - keep) ** 0.5)))
        return (rows[:, None] - cols < wide)[None, None]


@register("vertical_slash")
@dataclass
class VerticalSlash(Prefill):
    """Compute the columns and the diagonals that the last queries give the most weight.

    With the weights A of the `last` queries, columns are scored by sum_i A[i, j] and diagonals by
    sum_i A[i, i - o]. A column lies in one block of keys, a diagonal in two blocks of each row; a
    block scores as its best line, and the share goes to the best of both kinds. The nearest
    diagonals come first.
    (MInference, Jiang et al. 2024)
    """

    last: int = 64

    def tiles(self, call: Call, keep: float) -> Tensor:
        """Score the lines, and choose the best that the budget pays for."""
        rows, cols = tile_places(call, self.block)
        columns, slashes = lines(last_rows(call, self.last))
        columns = best_in_block(columns, self.block)[..., : len(cols)]
        # A diagonal at distance o crosses two tiles of each row of tiles, and the farther one
        # in o % block of its rows.
        far = torch.arange(slashes.shape[-1], device=slashes.device) % self.block / self.block
        near = best_in_block(slashes * (1 - far), self.block)[..., : len(cols)]
        beyond = best_in_block(slashes * far, self.block)[..., : len(cols)]
        near = near.maximum(torch.nn.functional.pad(beyond, (1, 0))[..., :-1])
        near[..., 1:2] = torch.inf
        columns[..., 0], near[..., 0] = -1.0, -1.0  # always computed
        total = len(rows) * (len(cols) - (len(rows) - 1) / 2)
        cost = (len(cols) - cols).clamp(max=len(rows)).float().repeat(2)
        budget = max(keep * total - 2 * len(rows), 0.0)
        paid = affordable(torch.cat((columns, near), -1), cost, budget)
        vertical, slash = paid.split(len(cols), -1)
        distance = (rows[:, None] - cols).clamp(min=0)
        return vertical[:, :, None] | slash[:, :, distance]


@register("block_sparse")
@dataclass
class BlockSparse(Prefill):
    """Compute for each tile of queries the key tiles whose mean keys best match its mean query.

    The score is softmax(mean q . mean k) over causal tiles; each row of tiles computes a share
    `keep` of the causal ones. (MInference, Jiang et al. 2024)
    """

    def tiles(self, call: Call, keep: float) -> Tensor:
        """Score tiles by pooled queries and keys, and choose the best."""
        rows, cols = tile_places(call, self.block)
        k = pooled(expand_heads(call.k, call.h), self.block)
        before = call.rule.offset % self.block
        q = pooled(padded(call.q, before, 0), self.block)
        scores = multiply(q, k.transpose(2, 3))
        scores = scores.masked_fill(cols > rows[:, None], -torch.inf)
        scores = scores.masked_fill(self.always(call), torch.inf)
        count = ((rows + 1) * keep).ceil().clamp(min=2)
        place = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
        return place < count[:, None]


def pooled(x: Tensor, block: int) -> Tensor:
    """Average x [b, h, m, d] over blocks; padding of the last one is not counted."""
    m = x.shape[2]
    pages = padded(x, 0, -m % block).unflatten(2, (-1, block))
    count = torch.full((pages.shape[2], 1), float(block), device=x.device)
    count[-1] -= -m % block
    return pages.sum(3) / count


def padded(x: Tensor, before: int, after: int) -> Tensor:
    """Pad the tokens of x [b, h, n, d] with zeros; nothing is copied where no padding is needed."""
    return torch.nn.functional.pad(x, (0, 0, before, after)) if before or after else x


@method("minference", call='from regard.policies import policy; policy("minference")')
@register("minference")
@dataclass
class MInference(Prefill, Calibrated):
    """Compute for each head the pattern that suits it: A-shape, vertical-slash or block-sparse.

    The pattern of a head is the one whose output is nearest to dense attention at equal cost, on
    one text: `regard.policies.calibrate(model, "minference", ids, to=...)`. Without a calibration
    every head takes vertical-slash, which is the choice of most heads. (MInference, Jiang et al.
    2024)
    """

    needed: ClassVar[bool] = False
    last: int = 64

    def __post_init__(self) -> None:
        self.kinds = {
            "a_shape": AShape(self.block, self.least),
            "vertical_slash": VerticalSlash(self.block, self.least, self.last),
            "block_sparse": BlockSparse(self.block, self.least),
        }
        self.patterns: dict[int, list[str]] = {}

    def tiles(self, call: Call, keep: float) -> Tensor:
        """Choose tiles by the pattern of each head."""
        layer = getattr(call.site, "layer", None)
        own = self.patterns.get(-1 if layer is None else layer, ["vertical_slash"] * call.h)
        made = {name: self.kinds[name].tiles(call, keep) for name in dict.fromkeys(own)}
        b = max(x.shape[0] for x in made.values())
        stacked = [made[name].expand(b, call.h, -1, -1)[:, h] for h, name in enumerate(own)]
        return torch.stack(stacked, 1)

    def best_patterns(self, call: Call, keep: float) -> list[str]:
        """Return for each head the pattern whose output is nearest to dense attention."""
        dense = run(call).out
        errors = []
        for kind in self.kinds.values():
            chosen = kind.always(call) | kind.tiles(call, keep)
            chosen = chosen & causal_tiles(call, self.block)
            some = Tiles(chosen, (self.block, self.block))
            rule = call.rule.replace(support=call.rule.support & some)
            off = run(call.replace(rule=rule)).out - dense
            errors.append(off.flatten(2).norm(dim=2).mean(0))
        best = torch.stack(errors).argmin(0)
        return [list(self.kinds)[i] for i in best.tolist()]

    def learn(
        self, model: Any, inputs: Sequence[Tensor], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Search on one text (ids [1, n]) in one forward, layer by layer."""
        self.begin(model, hook_of(model)[1], Budget.of(0.1))
        search = _PatternSearch(self, dict(state.get("patterns", {})))
        yield from run_texts(
            model, inputs[:1], state, search, keep, lambda: {"patterns": search.patterns}
        )
        self.patterns = search.patterns
        self.end()

    def found(self) -> dict[str, Any]:
        """Return the pattern of each head."""
        return {"patterns": self.patterns}

    def take(self, found: dict[str, Any]) -> None:
        """Load the patterns."""
        self.patterns = dict(found["patterns"])


@method("hip_attention", call='from regard.policies import policy; policy("hip")')
@register("hip")
@dataclass
class Hip(Prefill, Select):
    """Find key blocks by halving: keep the better halves, judged by the key in the middle of each.

    Each tile of queries starts with its causal range cut into n segments; each round splits them
    in two and keeps the n whose middle key has the largest q . k with any (every `stride`-th)
    query of the tile, until segments are single blocks: 2 n log2(T / n) scores instead of T. A
    decoding step searches the same way, for the queries that share a key head, and reads the
    blocks it finds, with the first and the newest. (HiP, Lee et al. 2024)
    """

    needs_cache: ClassVar[bool] = False
    stride: int = 8

    def select(self, step: Step) -> Call:
        """Choose tiles in a prompt, and blocks of keys in a decoding step."""
        call = step.call
        if call.n > 1 and self.density(call) >= 1:  # a budget that pays for every key
            return call
        plain = type(call.rule.support) is Everything and step.at is None
        if call.n > 1 or not plain or self.budget.whole or call.m < self.least * self.block:
            return super().select(step)
        count = self.budget.of_row(step.seen, self.token_bytes)
        if count >= call.m:
            return call
        return taken(call, self.keys_of_step(call, count), step.positions)

    def keys_of_step(self, call: Call, count: int) -> Tensor:
        """Choose about `count` keys per key head, in whole blocks: slots [b, g, c], -1 for none."""
        blocks = -(-call.m // self.block)
        n = max(1, count // self.block - 2)
        edges = torch.linspace(0, blocks, n + 1, device=call.q.device).round().long()
        low, high = edges[:-1].expand(call.b, call.g, 1, n), edges[1:].expand(call.b, call.g, 1, n)
        q = call.q.unflatten(1, (call.g, -1)).transpose(2, 3)  # [b, g, 1, h / g, d]
        low, high = self._walk(q, call.k, low, high)
        read = torch.zeros(call.b, call.g, blocks + 1, dtype=torch.bool, device=call.q.device)
        read.scatter_(-1, torch.where(high > low, low, blocks)[:, :, 0], True)
        read[..., 0] = read[..., blocks - 1] = True
        read[..., blocks] = False
        place = torch.arange(blocks + 1, device=call.q.device)
        chosen = torch.where(read, place, blocks).sort(-1).values[..., : int(read.sum(-1).max())]
        slots = chosen[..., None] * self.block + torch.arange(self.block, device=call.q.device)
        return torch.where(slots < call.m, slots, -1).flatten(2)

    def tiles(self, call: Call, keep: float) -> Tensor:
        """Search by halving, for all tiles of queries at once."""
        rows, cols = tile_places(call, self.block)
        before = call.rule.offset % self.block
        q = padded(call.q, before, -(before + call.n) % self.block)
        q = q.unflatten(2, (-1, self.block))[:, :, :, :: self.stride]  # [b, h, t, s, d]
        n = max(1, int(keep * len(cols) / 2))
        edges = torch.linspace(0, 1, n + 1, device=call.q.device)
        ends = ((rows[:, None] + 1) * edges).round().long()  # [t, n + 1], in key blocks
        low = ends[:, :-1].expand(call.b, call.h, -1, -1)
        high = ends[:, 1:].expand(call.b, call.h, -1, -1)
        low, high = self._walk(q, expand_heads(call.k, call.h), low, high)
        chosen = low.new_zeros(call.b, call.h, len(rows), len(cols) + 1, dtype=torch.bool)
        index = torch.where(high > low, low, len(cols))
        return chosen.scatter_(-1, index, True)[..., :-1]

    def _walk(self, q: Tensor, k: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Halve segments [b, h, t, n] of blocks, and keep n of them, until each is one block."""
        n = low.shape[-1]
        while bool((high - low > 1).any()):
            middle = torch.div(low + high + 1, 2, rounding_mode="floor")
            lows, highs = torch.cat((low, middle), -1), torch.cat((middle, high), -1)
            score = self._score(q, k, lows, highs)
            best = score.topk(n, dim=-1).indices
            low, high = lows.gather(-1, best), highs.gather(-1, best)
        return low, high

    def _score(self, q: Tensor, k: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the largest q . k of each tile of queries with the middle key of each segment."""
        middle = ((low + high) * self.block // 2).clamp(max=k.shape[2] - 1)
        index = middle.flatten(2)[..., None].expand(-1, -1, -1, k.shape[3])
        keys = k.gather(2, index).view(*middle.shape, -1)  # [b, h, t, c, d]
        score = multiply(q, keys.transpose(3, 4)).amax(3)
        return torch.where(high > low, score, -torch.inf)


class _PatternSearch(Stage):
    """Find the pattern of every head while the model reads a text."""

    def __init__(self, maker: MInference, patterns: dict[int, list[str]]) -> None:
        super().__init__()
        self.maker, self.patterns = maker, patterns

    def see(self, call: Call, result: Result) -> None:
        """Compare the patterns of one layer."""
        self.patterns[call.site.layer] = self.maker.best_patterns(call, self.maker.density(call))
