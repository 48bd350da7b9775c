"""Checks of rows that make diffusion transformers cheaper: by place, by frame, by step, by bits."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.core.call import Call
from regard.core.errors import need
from regard.models.engine import attended
from regard.models.forward import Forward
from regard.models.site import Site, Sites
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.distilling import distill
from regard.policies.frames import AttentionTile, meeting, tile_errors, tiles
from regard.policies.grids import Grat, GratCrissCross, Image, image_of, surrounding
from regard.policies.online_blocks import choose
from regard.policies.registry import policy
from regard.run.api import attend
from regard.run.executor import Yes
from regard.run.folding import make_fold
from regard.run.mass import log_weight, tile_mass
from regard.run.plan import EXECUTORS
from regard.run.reference import weight_matrix
from regard.verbs import shrink


def on_grid(grid: tuple[int, ...], text: int = 0, h: int = 2) -> Call:
    """Random joint attention over a grid and text behind it."""
    site = Site(0, "joint", "attn", h, h, 16, modality="image-text").at(Forward(0, grid=grid))
    q, k, v = torch.randn(3, 1, h, prod(grid) + text, 16)
    return Call.of(q, k, v, site=site)


def chosen(made: Any, call: Call, keep: Any = 0.25) -> tuple[Call, Step]:
    """What a policy makes of a call by itself."""
    made.begin(nn.Linear(1, 1), Sites([call.site]), Budget.of(keep))
    step = Step(call.site, call, call.m, torch.tensor([call.m]))
    return made.select(step), step


def folded(call: Call) -> Tensor:
    """Run a call in tiles, as a large one would be."""
    executor = "folded" if isinstance(EXECUTORS["folded"].can(call), Yes) else None
    return attend(call.q, call.k, call.v, call.rule, executor=executor)


def tiny_wan(frames: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """A random video transformer, and one input."""
    diffusers = need("diffusers", "diffusers", "has the model")
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model, {
        "hidden_states": torch.randn(1, 4, frames, 8, 12),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }


def wan_out(model: Any, inputs: dict[str, Tensor], time: int = 9) -> Tensor:
    """One forward."""
    with torch.no_grad():
        found: Tensor = model(**inputs, timestep=torch.tensor([time]), return_dict=False)[0]
    return found


def by_words(grid: tuple[int, ...], group: tuple[int, ...], radius: int | None) -> Tensor:
    """Which tokens meet, written pair by pair: near groups, or (no radius) groups on a level."""
    n = prod(grid)
    place, left = [], torch.arange(n)
    for size in reversed(grid):
        place.append(left % size)
        left = left // size
    boxes = [x // g for x, g in zip(reversed(place), group, strict=True)]
    if radius is None:
        return torch.stack([x[:, None] == x for x in boxes]).any(0)
    meets = torch.ones(n, n, dtype=torch.bool)
    for x, size, g in zip(boxes, grid, group, strict=True):
        many = -(-size // g)
        middle = x.clamp(min(radius, many - 1), max(many - 1 - radius, 0))
        if 2 * radius + 1 < many:
            meets &= (x[None] - middle[:, None]).abs() <= radius
    return meets


@check("grat")
def grat() -> Measured:
    """Groups are exact under their token mask, counted in closed form, and whole in the order."""
    one = on_grid((24, 20), 7)
    made = {"one group": Grat(group=(24, 20)), "all around": Grat(group=(8, 8), radius=3)}
    dense = attended(one)
    whole = max(gap(folded(chosen(x, one)[0]), dense) for x in made.values())
    off, counts = 0.0, []
    cases: Any = (((24, 20), (8, 8)), ((5, 9, 12), (2, 4, 4)), ((7, 7), (3, 2)))
    for grid, group in cases:
        for kind, radius in ((Grat(group, 1), 1), (GratCrissCross(group), None)):
            call = on_grid(grid, 7)
            run, step = chosen(kind, call)
            mask = torch.ones(call.n, call.n, dtype=torch.bool)
            mask[:-7, :-7] = by_words(grid, group, radius)
            off = max(off, gap(folded(run), sdpa(call.q, call.k, call.v, mask)))
            counts.append(step.pairs == float(mask.sum()))
    closed = []
    grids: Any = ((32, 48), (8, 16, 24))
    for grid in grids:
        group = (4, 8, 8)[-len(grid) :]
        many = [s // g for s, g in zip(grid, group, strict=True)]
        _, step = chosen(GratCrissCross(), on_grid(grid))
        level = prod(many) - prod(m - 1 for m in many)
        closed.append(step.pairs == prod(many) * level * prod(group) ** 2)
    large = on_grid((32, 48), 64, h=1)
    fold = make_fold(chosen(Grat(radius=1), large)[0], 0, 0)
    assert fold.order_q is not None
    back = torch.equal(fold.order_q[fold.order_q.argsort()], torch.arange(large.n))
    blocks = all(g.mask is None for layer in fold.layers for g in layer)
    places = Image((64, 64), 0, 4096).coordinates()
    near = float(surrounding(places, (64, 64), 1).float().mean())
    cross = float(torch.stack([x[:, None] == x for x in places]).any(0).float().mean())
    return Measured(
        "one group, or a radius over all, is dense attention (1e-5); so are ragged groups in 2 and "
        "3 axes with text under the mask written pair by pair; criss-cross computes the pairs of "
        "the closed form; the order of groups goes back to the identity, and no tile is partial",
        whole < 1e-5 and off < 1e-5 and all(counts) and all(closed) and back and blocks
        and near < 1 / 400 and cross < 1 / 32,
        {"one group": whole, "under the mask": off, "surrounding, share at 512 x 512 tokens": near,
         "criss-cross, share at 512 x 512 tokens": cross},
        left_out="pictures of trained models; times are in benchmarks/results/shrink-vision.json",
    )  # fmt: skip


def video(frames: int, side: int, diagonal: float | None) -> Call:
    """Heads whose frames look at themselves, and alike at all others; or random ones (None)."""
    call = on_grid((frames, side, side))
    if diagonal is None:
        return call.replace(q=3 * call.q)
    alike = torch.randn(2, 1, 2, 1, side * side, 8).expand(-1, -1, -1, frames, -1, -1).flatten(3, 4)
    own = torch.eye(frames, 8).repeat_interleave(side * side, 0).expand(1, 2, -1, -1)
    q = torch.cat((alike[0], own * diagonal * 4), -1)  # scores are divided by sqrt(16)
    return call.replace(q=q, k=torch.cat((alike[1], own), -1))


@check("efficient_vdit_tile", long=True)
def attention_tile() -> Measured:
    """Tiles are linear in frames, the search tells maps apart, and distilling closes the gap."""
    call = on_grid((6, 4, 4), 5)
    whole = AttentionTile()
    whole.take({"references": {0: 6}})
    exact = gap(attended(chosen(whole, call)[0]), attended(call))
    counted = [int(meeting(f, 3).sum()) for f in (8, 16, 32)]
    linear = counted == [tiles(f, 3) for f in (8, 16, 32)] and (
        counted[2] - counted[1] == 2 * (counted[1] - counted[0])
    )
    found = []
    for diagonal, error in ((8.0, 0.01), (None, 0.001)):
        one = video(8, 4, diagonal)
        image = image_of(one)
        assert image is not None
        errors = tile_errors(one, image)
        found.append(next(k for k, e in enumerate(errors, 1) if e <= error))
    model, inputs = tiny_wan(4)
    student = copy.deepcopy(model)
    made = policy("efficient_vdit_tile")
    batch = [{**inputs, "timestep": torch.tensor([t]), "return_dict": False} for t in (9, 5)]
    plain = wan_out(model, inputs)
    with shrink(student, policy("efficient_vdit_tile"), keep=0.1, check=False) as shrunk:
        before = float((wan_out(student, inputs) - plain).norm() / plain.norm())
        share = shrunk.report().flops / shrunk.report().dense_flops
    losses = list(distill(student, made, batch, keep=0.1, steps=100, rate=3e-3))
    with shrink(student, policy("efficient_vdit_tile"), keep=0.1, check=False):
        after = float((wan_out(student, inputs) - plain).norm() / plain.norm())
    return Measured(
        "as many references as frames is full attention (1e-5); at 3 references the tiles of 8, "
        "16 and 32 frames grow by a line; the search gives k = 1 to frames that look at "
        "themselves, and alike at all others, and all tiles to random ones; distilling a random "
        "transformer halves its loss and its distance from the whole one",
        exact < 1e-5 and linear and found[0] == 1 and tiles(8, found[1]) == 64
        and losses[-1] < 0.5 * losses[0] and after < 0.5 * before,
        {"k = F": exact, "tiles of 8, 16, 32 frames": str(counted), "k found": str(found),
         "FLOPs of dense": share, "distance before": before, "distance after": after},
        left_out="the multi-step consistency distillation before it, and trained video models",
    )  # fmt: skip


def blocky(n: int, block: int, sharpness: tuple[float, ...]) -> Call:
    """Attention in blocks: tokens near the center of theirs, by heads of different sharpness."""
    h = len(sharpness)
    q, k = (
        (torch.randn(1, h, n // block, 1, 32) + 0.3 * torch.randn(1, h, n // block, block, 32))
        for _ in "qk"
    )
    sharp = torch.tensor(sharpness).view(1, h, 1, 1)
    return Call.of(q.flatten(2, 3) * sharp, k.flatten(2, 3), torch.randn(1, h, n, 32))


def turned(call: Call, cosine: float) -> Call:
    """Every query and key turned to a cosine from where it was, each in a direction of its own."""
    new = []
    for x in (call.q, call.k):
        away = torch.randn_like(x)
        away = away - (away * x).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True) * x
        away = away * (x.norm(dim=-1, keepdim=True) / away.norm(dim=-1, keepdim=True))
        new.append(cosine * x + (1 - cosine**2) ** 0.5 * away)
    return call.replace(q=new[0], k=new[1])


@check("adaspa")
def adaspa() -> Measured:
    """Tiles from a kept log-sum-exp are exact, stay good while a model drifts, and suit heads."""
    n, block, h, keep = 1024, 64, 6, 0.2
    call = blocky(n, block, (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
    lse = log_weight(call)
    mass = tile_mass(call, block, lse)
    blocks = weight_matrix(call)[0].unflatten(2, (-1, block)).unflatten(4, (-1, block)).sum((3, 5))
    exact, rows = gap(mass, blocks), gap(mass.sum(-1), torch.full((1, h, n // block), float(block)))
    none = torch.zeros(n // block, dtype=torch.bool)
    everything = bool(choose(mass, none, 1.0, 0.1).all())

    def recall(tiles_: Tensor, true: Tensor) -> float:
        return float((true * tiles_).sum() / true.sum())

    held, fresh, kept_lse = [], [], []
    now = call
    first = choose(mass, none, keep, 0.1)
    for _ in range(8):
        now = turned(now, 0.98)
        true = tile_mass(now, block)
        held.append(recall(first, true))
        fresh.append(recall(choose(true, none, keep, 0.1), true))
        kept_lse.append(recall(choose(tile_mass(now, block, lse), none, keep, 0.1), true))
        if len(held) == 1:
            lost = fresh[0] - held[0]
    uneven = blocky(n, block, (0.4, 0.5, 0.6, 8.0, 10.0, 12.0))
    true = tile_mass(uneven, block)
    uniform = recall(choose(true, none, keep), true)
    adaptive = recall(choose(true, none, keep, 0.1), true)
    later = tile_mass(turned(uneven, 0.98), block)
    sharp = recall(choose(later, none, keep), later) - recall(choose(true, none, keep), later)
    model, inputs = tiny_wan()
    plain = [wan_out(model, inputs, t) for t in (9, 8, 7)]
    with shrink(model, policy("adaspa", block=4, searches=(1,), least=2), keep=0.999,
                check=False):  # fmt: skip
        off = max(gap(wan_out(model, inputs, t), x) for t, x in zip((9, 8, 7), plain, strict=True))
    return Measured(
        "tile sums from the log-sum-exp equal those of the dense weights (1e-5 of a row) and rows "
        "sum to the block; all tiles give the dense model; when q and k have turned to a cosine of "
        "0.98, tiles found before lose under 0.2% of the mass that new ones hold; budgets by head "
        "hold more than even ones, where half the heads are sharp",
        exact < 1e-5 * block and rows < 1e-5 * block and everything and off < 1e-5 and lost < 0.002
        and adaptive > uniform,
        {"tile sums": exact, "row sums": rows, "all tiles": off, "mass held, reused": held[0],
         "mass held, found anew": fresh[0], "after 8 turns, reused": held[-1],
         "after 8 turns, anew": fresh[-1], "after 8 turns, anew with the first log-sum-exp":
         kept_lse[-1], "lost by one turn where half the heads are sharp": sharp,
         "even budgets": uniform, "budgets by head": adaptive},
        left_out="trained video models; a fused kernel of the search; the loss grows with "
        "sharpness: see the number for heads of sharpness 8 to 12",
    )  # fmt: skip
