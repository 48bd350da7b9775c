"""Grouped weights sum to one over ordinary tokens; retrieving all is reading all."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.core.partial import Partial, merge
from regard.core.support import Blocks, Causal, Strided
from regard.layers.block_routing import LandmarkAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.run.api import attend, partial


@check(
    "landmark_attention",
    left_out={"Passkey toy": "no model is trained at 256 tokens and tried at 2,048"},
)
def landmarks() -> Claims:
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
    merged = gap(attend(q, k, v, layer.rule()), merge(*parts).out)
    every = LandmarkAttention(32, heads=2, block=size, retrieve=n)
    every.load_state_dict(layer.state_dict())
    few = LandmarkAttention(32, heads=2, block=size, retrieve=2)
    few.load_state_dict(layer.state_dict())
    seen = attend(q, k, torch.eye(n).expand(1, 2, n, n), few.rule()) > 0
    blocks = F.pad(seen, (0, -n % size)).unflatten(-1, (-1, size)).any(-1).sum(-1)
    yield claim("Weights over ordinary tokens", "distance of sums from 1", sums).within(
        1e-5, "1", because=FLOAT32
    )
    yield claim("Weights over ordinary tokens", "largest weight of a landmark", on_marks).equals(
        0.0, "none"
    )
    yield claim(
        "With k >= number of blocks", "difference of retrieving all", gap(every(x), layer(x))
    ).within(1e-5, "the grouped softmax", because=CATALOGUE)
    yield claim(
        "With k >= number of blocks",
        "difference of blocks merged at their landmarks' scores",
        merged,
    ).within(1e-5, "the grouped softmax", because=CATALOGUE)
    yield claim("With k >= number of blocks", "blocks read, k = 2", int(blocks.max())).equals(
        3, "2 and the own one"
    )
