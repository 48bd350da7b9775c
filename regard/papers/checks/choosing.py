"""Checks of rows that choose keys by content: blocks, landmarks, agents, hashes, probes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.partial import Partial, merge, merge_stacked
from regard.core.support import Blocks, Causal, Strided
from regard.layers.agents import AgentAttention
from regard.layers.attention import Attention
from regard.layers.block_routing import BlockRouting, LandmarkAttention, gates
from regard.layers.hashing import HashedInterest
from regard.layers.pooling import EfficientProbing
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.recurrent import flops_ratio, scene_of
from regard.papers.checks.training import fit
from regard.run.api import attend, partial


@check("moba")
def block_routing() -> Measured:
    """All blocks is full attention; merging is masking; the future is not seen."""
    n, block = 50, 8
    x = torch.randn(2, n, 32)
    plain = Attention(32, heads=4, causal=True)
    every = BlockRouting(32, heads=4, block=block, blocks=7)
    every.load_state_dict(plain.state_dict())
    full = gap(every(x), plain(x))

    layer = BlockRouting(32, heads=4, block=block, blocks=3)
    call = layer.call(scene_of(x))
    top = gates(call, layer.block)
    past = torch.arange(7) <= (torch.arange(n) // block)[:, None]
    best = top.masked_fill(~past, -torch.inf).topk(3).indices
    open_ = torch.zeros_like(top, dtype=torch.bool).scatter(-1, best, True) & past
    mask = open_.repeat_interleave(block, -1)[..., :n] & torch.ones(n, n, dtype=torch.bool).tril()
    q, k, v = (t.detach().requires_grad_() for t in (call.q, call.k, call.v))
    dense = F.scaled_dot_product_attention(q, k, v, mask)
    masked = gap(layer.look(call.replace(q=q, k=k, v=v), scene_of(x)), dense)
    # The efficient form: the own block, causal, and past blocks, merged by what each weighs.
    own = partial(q, k, v, Causal() & Blocks(block))
    parts = [own]
    for b in range(7):
        keys = slice(b * block, (b + 1) * block)
        part = partial(q, k[:, :, keys], v[:, :, keys])
        seen = open_[..., b] & (torch.arange(n) // block > b)
        parts.append(Partial(part.out, part.lse.masked_fill(~seen, -torch.inf)))
    merged = merge(*parts).out
    wanted = torch.autograd.grad(dense.square().sum(), (q, k, v))
    found = torch.autograd.grad(merged.square().sum(), (q, k, v))
    gradients = max(map(gap, found, wanted))
    changed = x.clone()
    changed[:, 29:] = torch.randn(2, n - 29, 32)
    leak = gap(layer(changed)[:, :29], layer(x)[:, :29])
    pairs = int(mask.sum(-1).max())
    return Measured(
        "with blocks for every key the layer is full causal attention; own and past blocks merged "
        "equal masked dense attention, gradients too; later tokens of the same block change "
        "nothing; a query meets at most k B keys",
        max(full, masked, gap(merged, dense), leak) < 1e-5 and gradients < 1e-4
        and pairs <= 3 * block,
        {"full": full, "masked": masked, "merged": gap(merged, dense), "gradients": gradients,
         "leak": leak, "keys met, of 24": pairs},
    )  # fmt: skip


@check("landmark_attention")
def landmarks() -> Measured:
    """Grouped weights sum to one over ordinary tokens; retrieving all is reading all."""
    n, size = 40, 6
    layer, x = LandmarkAttention(32, heads=2, block=size), torch.randn(1, n, 32)
    q, (k, v) = layer.queries(x), layer.keys(x)
    weights = attend(q, k, torch.eye(n).expand(1, 2, n, n), layer.rule())
    marks = torch.arange(n) % size == size - 1
    on_marks = float(weights[..., marks].detach().abs().max())
    ordinary = weights[:, :, ~marks].sum(-1)  # a landmark sees its block as any token does
    sums = gap(ordinary, torch.ones_like(ordinary))
    # The same as attention merged: the own block, and each earlier one at its landmark's score.
    scores = q @ k.mT / 16**0.5
    block = torch.arange(n) // size
    own = partial(q, k, v, Causal() & Blocks(size) & ~Strided(size, size - 1))
    parts = [own]
    for b in range(n // size):
        keys = slice(b * size, (b + 1) * size - 1)
        part = partial(q, k[:, :, keys], v[:, :, keys])
        score = scores[..., (b + 1) * size - 1].masked_fill(block <= b, -torch.inf)
        parts.append(Partial(part.out, score))
    stacked = merge_stacked(
        Partial(torch.stack([p.out for p in parts], 2), torch.stack([p.lse for p in parts], 2)), 2
    ).out
    merged = gap(attend(q, k, v, layer.rule()), stacked)
    every = LandmarkAttention(32, heads=2, block=size, retrieve=n)
    every.load_state_dict(layer.state_dict())
    few = LandmarkAttention(32, heads=2, block=size, retrieve=2)
    few.load_state_dict(layer.state_dict())
    seen = attend(q, k, torch.eye(n).expand(1, 2, n, n), few.rule()) > 0
    blocks = F.pad(seen, (0, -n % size)).unflatten(-1, (-1, size)).any(-1).sum(-1)
    return Measured(
        "weights over ordinary tokens sum to 1 for every query and landmarks get none; the grouped "
        "softmax is a merge of blocks at their landmarks' scores; retrieving as many blocks as "
        "there are changes nothing, retrieving 2 reads 2 and the own block",
        max(sums, merged, gap(every(x), layer(x))) < 1e-5 and on_marks == 0
        and int(blocks.max()) == 3,
        {"sums": sums, "on landmarks": on_marks, "merged": merged,
         "retrieving all": gap(every(x), layer(x)), "blocks read": int(blocks.max())},
        left_out="the passkey model trained at 256 tokens and tried at 2,048",
    )  # fmt: skip


@check("agent_attention")
def agents() -> Measured:
    """Weights through agents are rows of one, of low rank; the cost is linear."""
    layer, x = AgentAttention(32, heads=2, agents=6), torch.randn(1, 60, 32)
    q, (k, v) = layer.queries(x), layer.keys(x)
    a = layer.pool(q)
    weights = (q @ a.mT / 4).softmax(-1) @ (a @ k.mT / 4).softmax(-1)
    written = gap(layer.look(layer.call(scene_of(x)), scene_of(x)), weights @ v)
    sums = gap(weights.sum(-1), torch.ones(1, 2, 60))
    rank = int(torch.linalg.matrix_rank(weights.double(), atol=1e-5).max())
    call = layer.call(scene_of(x))
    constant = torch.randn(16).expand(1, 2, 60, 16)
    same = gap(layer.look(call.replace(v=constant), scene_of(x)), constant)
    work = flops_ratio(layer)
    return Measured(
        "the implied weights sum to 1 and have rank at most the number of agents; constant values "
        "come out as they are; work grows linearly",
        max(written, sums, same) < 1e-5 and rank <= 6 and work < 1.05,
        {"written out": written, "sums": sums, "rank of 6 agents": rank, "constant": same,
         "work per token, 8 times the length": work},
    )  # fmt: skip


@check("sdim")
def hashed() -> Measured:
    """Buckets agree as often as angles say; tables add up; a candidate's cost is fixed."""
    worst, layer = 0.0, HashedInterest(32).eval()
    for angle in torch.linspace(0.1, math.pi - 0.1, 7):
        a = F.normalize(torch.randn(32), dim=0)
        b = torch.randn(32)
        b = F.normalize(b - (a @ b) * a, dim=0)
        pair = torch.stack((a, torch.cos(angle) * a + torch.sin(angle) * b))[None]
        met = 0.0
        for _ in range(2000):
            codes = layer.codes(pair)[0]
            met += float((codes[0] == codes[1]).float().mean()) / 2000
            layer.directions.normal_()
        worst = max(worst, abs(met - (1 - float(angle) / math.pi) ** 3))
    x, behaviors = torch.randn(1, 4, 32), torch.randn(1, 200, 32)
    with torch.no_grad():
        values, codes = layer.to_v(behaviors), layer.codes(behaviors)
        agree = layer.codes(x)[:, :, None] == codes[:, None]  # [b, n, m, groups]
        direct = torch.einsum("bnmg,bmd->bngd", agree.float(), values)
        direct = F.normalize(direct, dim=-1).mean(2)
        table = sum(layer.table(behaviors[:, i : i + 2]) for i in range(0, 200, 2))
        lookup = max(gap(layer(x, behaviors), direct), gap(layer.gather(x, table), direct))
    sizes = [layer.table(torch.randn(1, m, 32)).numel() for m in (100, 10_000)]
    return Measured(
        "groups of 3 bits agree with probability (1 - angle / pi)^3 within 0.02 (2,000 draws); the "
        "table equals the direct sum, after 100 increments too; what a candidate reads is of one "
        "size for 100 and 10,000 behaviors",
        worst < 0.02 and lookup < 1e-5 and sizes[0] == sizes[1],
        {"probability off by": worst, "table": lookup, "sums at 100": sizes[0],
         "sums at 10,000": sizes[1]},
    )  # fmt: skip


@check("efficient_probing")
def probing() -> Measured:
    """No opinion is the mean; queries are heads of one query each; a marked patch is found."""
    probe, x = EfficientProbing(64, queries=8), torch.randn(3, 20, 64)
    with torch.no_grad():
        saved = probe.queries.clone()
        probe.queries.zero_()
        mean = gap(probe(x), probe.to_v(x.mean(1)))
        probe.queries.copy_(saved.normal_())
    slices = probe.to_v(x).unflatten(-1, (8, 8))
    heads = [
        F.scaled_dot_product_attention(u.expand(3, 1, 64), x, slices[:, :, i], scale=1 / 8)
        for i, u in enumerate(probe.queries)
    ]
    alone = gap(probe(x), torch.cat(heads, -1).flatten(1))
    accuracy = {"attention": _marked_patch(True), "mean": _marked_patch(False)}
    return Measured(
        "queries of zero give the value map of the mean token; the pool is one single-query "
        "attention per head with keys as they are; the class of one marked patch among 64 is read "
        "with over 90% accuracy where a mean pool stays under half",
        max(mean, alone) < 1e-5 and accuracy["attention"] > 0.9 and accuracy["mean"] < 0.5,
        {"mean": mean, "heads": alone, **{f"accuracy, {k}": a for k, a in accuracy.items()}},
    )


def _marked_patch(attends: bool) -> float:
    torch.manual_seed(0)
    classes, mark = torch.randn(8, 32), torch.randn(32)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        wanted, place = torch.randint(0, 8, (size,)), torch.randint(0, 64, (size,))
        x = classes[torch.randint(0, 8, (size, 64))]
        x[torch.arange(size), place] = classes[wanted] + mark
        return x + 0.3 * torch.randn_like(x), wanted

    probe = EfficientProbing(32, queries=4)
    norm, last = nn.BatchNorm1d(32, affine=False), nn.Linear(32, 8)

    def scores(x: Tensor) -> Tensor:
        pooled = probe(x) if attends else probe.to_v(x.mean(1))
        answer: Tensor = last(norm(pooled))
        return answer

    def loss() -> Tensor:
        x, wanted = batch(64)
        return F.cross_entropy(scores(x), wanted)

    fit([*probe.parameters(), *last.parameters()], loss, 400, 1e-2)
    norm.eval()
    x, wanted = batch(1024)
    return float((scores(x).argmax(-1) == wanted).float().mean())
