"""Checks of rows that a rule alone runs: a weigh, a bias, or a support."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.core.rule import Rule
from regard.core.score import Dot, LowRankBias
from regard.core.support import Neighborhood
from regard.core.tilemap import EMPTY
from regard.core.weigh import Signed, Softmax, Weigh
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import Largest, gap
from regard.run.api import attend


def _explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, -1) @ v


def _subtraction_error(weigh: Weigh, steps: int = 400) -> float:
    """Train q and k of one head to give (x_a - x_b) / 2 from marked tokens; v and output are x."""
    marks = torch.eye(3)[torch.tensor([0, 1, 2, 2, 2, 2, 2, 2])]  # a, b, and six others
    query = torch.randn(1, 1, 1, 8, requires_grad=True)
    key = torch.randn(3, 8, requires_grad=True)
    learn = torch.optim.Adam([query, key], lr=0.05)
    loss = torch.zeros(())
    for _ in range(steps):
        x = torch.randn(256, 1, 8, 4)
        target = (x[:, :, :1] - x[:, :, 1:2]) / 2
        k = (marks @ key).expand(256, 1, 8, 8)
        out = attend(query.expand(256, 1, 1, 8), k, x, Rule(weigh=weigh), executor="reference")
        loss = (out - target).square().mean()
        learn.zero_grad()
        loss.backward()
        learn.step()
    return float(loss.detach())


@check("cog_attention")
def signed_weights() -> Measured:
    """Signed weights sum to one in size, contain softmax, and subtract where softmax cannot."""
    q, k, v = (torch.randn(2, 4, 33, 16) for _ in range(3))
    scores = q @ k.mT / 4
    weights = Signed().weights(scores, None, None)
    up, down = q.abs(), k.abs()
    softmax = _explicit(up, down, v)
    positive = gap(attend(up, down, v, Signed()), softmax)
    negative = gap(attend(up, -down, v, Signed()), -softmax)
    dense = (torch.sign(scores) * torch.softmax(scores.abs(), -1)) @ v
    state = Signed().start(torch.zeros_like(v))
    for lo in range(0, 33, 7):
        state = Signed().update(state, scores[..., lo : lo + 7], None, v[:, :, lo : lo + 7])
    streaming = gap(Signed().finish(state).out, dense)
    fitted = max(_subtraction_error(Signed()) for _ in range(3))
    convex = min(_subtraction_error(Softmax()) for _ in range(3))
    numbers = {
        "row sums of |a|, distance from 1": gap(weights.abs().sum(-1), torch.ones(2, 4, 33)),
        "all scores positive, gap to softmax": positive,
        "all scores negative, gap to minus softmax": negative,
        "streaming in tiles of 7, gap to dense": streaming,
        "error of (x_a - x_b) / 2 after training, signed (worst of 3)": fitted,
        "error of (x_a - x_b) / 2 after training, softmax (best of 3)": convex,
    }
    exact = max(list(numbers.values())[:4])
    return Measured(
        claim="Weights may be negative with sizes that sum to 1; the form holds softmax and minus "
        "softmax as cases, streams exactly, and one head learns to subtract a token (mean squared "
        "error under 0.01) where softmax stays above 0.1.",
        held=exact < 2e-6 and fitted < 1e-2 and convex > 0.1,
        numbers=numbers,
    )


def _bias_gap(u: Tensor, w: Tensor) -> tuple[float, float]:
    """Gap of output and of the gradients between a bias that rides in q and k, and an explicit one.

    The gap is relative to the largest entry, in float32.
    """
    n = u.shape[2]
    leaves = [torch.randn(1, 2, n, 32, requires_grad=True) for _ in range(3)]
    way = torch.randn(1, 2, n, 32)
    rule = Rule(score=Dot() + LowRankBias(u, w))
    ours = attend(*leaves, rule, executor="fused")
    theirs = _explicit(*leaves, u @ w.mT)
    ours_grad = torch.autograd.grad(ours, leaves, way)
    theirs_grad = torch.autograd.grad(theirs, leaves, way)
    grads = [gap(a, b) / float(b.abs().max()) for a, b in zip(ours_grad, theirs_grad, strict=True)]
    return gap(ours, theirs) / float(theirs.detach().abs().max()), max(grads)


@check("flashbias")
def bias_in_channels() -> Measured:
    """A low-rank bias in extra channels of q and k is exact, and needs no table of pairs."""
    n = 96
    place = torch.arange(n, dtype=torch.float32)
    ones = torch.ones(n)
    slope = torch.tensor([0.25, 0.0625]).view(2, 1, 1)
    alibi = (
        (slope * torch.stack([-place, ones], -1))[None],
        torch.stack([ones, place], -1).expand(1, 1, n, 2),
    )
    x = torch.randn(n, 3)
    size = x.square().sum(-1)
    squared = (
        -0.5 * torch.cat([size[:, None], ones[:, None], -2 * x], -1).expand(1, 1, n, 5),
        torch.cat([ones[:, None], size[:, None], x], -1).expand(1, 1, n, 5),
    )
    alibi_out, alibi_grad = _bias_gap(*alibi)
    far_out, far_grad = _bias_gap(*squared)

    table = torch.randn(2 * n - 1)[(place[:, None] - place).long() + n - 1]
    left, power, right = torch.linalg.svd(table)
    q, k, v = (torch.randn(1, 1, n, 32) for _ in range(3))
    whole = _explicit(q, k, v, table)
    errors = []
    for rank in (1, 8, 32, n):
        u = (left * power)[None, None, :, :rank].contiguous()
        w = right.mT[None, None, :, :rank].contiguous()
        errors.append(gap(attend(q, k, v, Dot() + LowRankBias(u, w), executor="fused"), whole))

    sizes = []
    for many in (4096, 8192):
        q, k, v = (torch.randn(1, 1, many, 32) for _ in range(3))
        u = torch.randn(1, 1, many, 2)
        with Largest() as largest:
            attend(q, k, v, Dot() + LowRankBias(u, u), executor="fused")
        sizes.append(largest.bytes)
    numbers = {
        "ALiBi, relative gap of the output": alibi_out,
        "ALiBi, relative gap of the gradients": alibi_grad,
        "squared distance, relative gap of the output": far_out,
        "squared distance, relative gap of the gradients": far_grad,
        "SVD rank 1, error of the output": errors[0],
        "SVD rank 8": errors[1],
        "SVD rank 32": errors[2],
        f"SVD rank {n} (full)": errors[3],
        "largest tensor at 8192 tokens, MiB": sizes[1] / 2**20,
        "growth from 4096 to 8192 tokens": sizes[1] / sizes[0],
        "an explicit bias at 8192 tokens, MiB": 8192**2 * 4 / 2**20,
    }
    falls = errors[0] > errors[1] > errors[2] > errors[3]
    return Measured(
        claim="ALiBi and squared distance as factors in extra channels equal the explicit bias to "
        "1e-5, gradients too; the error of a truncated SVD falls with the rank and is 0 at full "
        "rank; the largest tensor made grows linearly with length.",
        held=max(alibi_out, alibi_grad, far_out, far_grad) < 1e-5
        and falls
        and errors[3] < 1e-5
        and sizes[1] <= 2.1 * sizes[0],
        numbers=numbers,
        left_out="Time on a GPU; memory inside PyTorch's fused kernel is not seen by the count.",
    )


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return _explicit(q, k, v, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf))


def _tile_order(lattice: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """Order of the positions of a lattice when tiles of it are laid out one after another."""
    rows, cols = lattice
    place = torch.arange(rows * cols).view(rows // tile[0], tile[0], cols // tile[1], tile[1])
    return place.permute(0, 2, 1, 3).flatten()


def _visited(kernel: int, stride: int, lattice: tuple[int, int], tile: tuple[int, int]) -> int:
    """Count tile pairs that hold some allowed pair, by the explicit mask in tile order."""
    order = _tile_order(lattice, tile)
    mask = Neighborhood(kernel, lattice, stride=stride).matrix(len(order))[0, 0][order][:, order]
    area = tile[0] * tile[1]
    tiles = len(order) // area
    return int(mask.view(tiles, area, tiles, area).any(3).any(1).sum())


@check("gna")
def strided_neighborhoods() -> Measured:
    """Stride turns a sliding window into a blocked one, and never visits more tiles."""
    n, w = 48, 8
    place = torch.arange(n)
    q, k, v = (torch.randn(1, 2, n, 8) for _ in range(3))
    block = place[:, None] // w == place // w
    blocked = gap(attend(q, k, v, Neighborhood(w, (n,), stride=w)), _masked(q, k, v, block))
    start = (place - w // 2).clamp(0, n - w)[:, None]
    near = (place >= start) & (place < start + w)
    sliding = gap(attend(q, k, v, Neighborhood(w, (n,))), _masked(q, k, v, near))
    full = gap(attend(q, k, v, Neighborhood(n, (n,))), _masked(q, k, v, near | True))

    miscounted = worse = tried = 0
    fewest = 1.0
    for kernel in range(4, 17):
        mask = Neighborhood(kernel, (n,)).matrix(n)[0, 0]
        some = mask.view(n // 8, 8, n // 8, 8).any(3).any(1)
        counted = Neighborhood(kernel, (n,)).tiles(n, n, 8).state[0, 0] != EMPTY
        miscounted += int((some != counted).sum())
        lattice, tile = (16, 16), (4, 4)
        plain = _visited(kernel, 1, lattice, tile)
        for stride in (2, 4):
            strided = _visited(kernel, stride, lattice, tile)
            tried += 1
            worse += strided > plain
            fewest = min(fewest, strided / plain)
    return Measured(
        claim="A stride of the window gives block-diagonal attention, stride 1 the neighborhood "
        "found by brute force, and a window of the axis full attention (1e-5); the tile map counts "
        "the non-empty tiles of the explicit mask; a stride that divides the query tile never "
        "adds a tile.",
        held=max(blocked, sliding, full) < 1e-5 and miscounted == 0 and worse == 0,
        numbers={
            "stride = window, gap to block-diagonal": blocked,
            "stride 1, gap to brute force": sliding,
            "window = axis, gap to full": full,
            "tiles miscounted": miscounted,
            "settings tried with a stride": tried,
            "settings where the stride added tiles": worse,
            "fewest tiles against stride 1": fewest,
        },
        left_out="Speed on a GPU.",
    )
