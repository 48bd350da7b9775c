"""A gate learns where loud keys are, as means cannot; its target is the pooled map."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Tiles
from regard.models.rotary import Turn
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.attending import CAUSAL
from regard.policies.gates import Gate, best_tiles, divergence, mass_found, pooled, tile_targets
from regard.run.api import attend
from regard.run.reference import weight_matrix


def hot_keys(n: int = 256, block: int = 16, d: int = 16) -> Call:
    """Two heads whose blocks of keys hide a loud key each, of eight kinds that queries ask for."""
    t = n // block
    kinds = torch.eye(d)[:8]
    k = 0.6 * torch.randn(1, 2, n, d)
    spot = torch.arange(t) * block + torch.randint(block, (2, t))
    for head in range(2):
        k[0, head, spot[head]] += 3 * kinds[torch.randint(8, (t,))]
    asked = kinds[torch.randint(8, (2, t))].repeat_interleave(block, 1)
    q = 6 * asked[None] + torch.randn(1, 2, n, d)
    return Call.of(q, k, torch.randn(1, 2, n, d), CAUSAL)


def best_of(scores: Tensor, count: int) -> Tensor:
    """Choose the highest in each row."""
    return scores.argsort(dim=-1, descending=True).argsort(dim=-1) < count


@check("seer_attention", beyond="fine-tuning with YaRN at 32K, and kernels")
def seer() -> Claims:
    """A gate learns where loud keys are, as means cannot; its target is the pooled map."""
    block, count = 16, 4
    first = hot_keys()
    weights = weight_matrix(first)[0]
    tiles = weights.unflatten(3, (-1, block)).unflatten(2, (-1, block)).amax((3, 5))
    off = float((tile_targets(first, block) - tiles / tiles.sum(-1, keepdim=True)).abs().max())
    dense = attend(first.q, first.k, first.v, CAUSAL)
    every = torch.ones_like(tiles, dtype=torch.bool)
    whole = attend(first.q, first.k, first.v, Rule(Causal() & Tiles(every, block)))

    gate = Gate.of(Site(0, "self", "x", 2, 2, 16, causal=True), 16)
    maps = [gate.q.requires_grad_(True), gate.k.requires_grad_(True)]
    optimizer = torch.optim.AdamW(maps, lr=0.02, weight_decay=0.0)
    for _ in range(300):
        call = hot_keys()
        loss = divergence(tile_targets(call, block), gate.scores(call.q, call.k, 0, block, Turn()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    for _ in range(4):
        call = hot_keys()
        with torch.no_grad():
            said = gate.scores(call.q, call.k, 0, block, Turn())
        means = pooled(call.q, block, 0, "mean") @ pooled(call.k, block, 0, "mean").mT
        rows = torch.arange(means.shape[2])
        means = means.masked_fill(rows > rows[:, None], -torch.inf)
        found.append([
            mass_found(call, x, block)
            for x in (best_of(said, count), best_of(means, count), best_tiles(call, block, count))
        ])  # fmt: skip
    learned, mean, oracle = torch.tensor(found).mean(0).tolist()
    yield claim(
        "threshold<0 equals", "difference of all tiles", float((whole - dense).abs().max())
    ).within(1e-5, "dense attention", because=FLOAT32)
    yield claim("Pooled target", "difference", off).within(
        1e-5, "max-pool of the dense map", because=CATALOGUE
    )
    yield claim("Toy with few hot keys", "mass of a gate's 4 tiles", learned).above(
        mean, "means of raw QK"
    )
    yield claim(
        "Toy with few hot keys", "mass that a gate misses of the best 4", oracle - learned
    ).below(
        oracle - mean,
        "what means miss",
        times=0.5,
        because="the catalogue saw 0.01 against 0.06: at most half",
    )
