"""Distances looked up equal distances gathered; memory is linear; lengths carry over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import joined
from regard.layers.building import model
from regard.layers.relative import RelativeAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import Largest, gap
from regard.papers.shared.small_trainer import fit


def _skewed_by_hand(layer: RelativeAttention, x: Tensor, reach: int) -> Tensor:
    """The paper's formula, every pair gathered."""
    q, (k, v), n = layer.queries(x), layer.keys(x), x.shape[1]
    place = (torch.arange(n) - torch.arange(n)[:, None]).clamp(-reach, reach) + reach
    gathered = layer.position.table[:, place]  # [h, n, n, d]
    scores = (q @ k.mT + torch.einsum("bhnd,hnmd->bhnm", q, gathered)) / layer.head_dim**0.5
    if layer.causal:
        scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    mixed: Tensor = layer.to_out(joined(scores.softmax(-1) @ v))
    return mixed


def _period(name: str, **settings: object) -> float:
    """Accuracy beyond place 64 of a model trained on 64 tokens that repeat after 7."""
    restart()
    tiny = model([name], dim=32, heads=4, vocab=16, **settings)

    def batch(n: int) -> Tensor:
        return torch.randint(0, 16, (32, 7)).repeat(1, n // 7 + 1)[:, :n]

    def loss() -> Tensor:
        tokens = batch(64)
        return F.cross_entropy(tiny(tokens)[:, 7:-1].flatten(0, 1), tokens[:, 8:].flatten())

    fit(tiny.parameters(), loss, 250, 1e-2)
    tokens = batch(128)
    with torch.no_grad():
        guessed = tiny(tokens)[:, 64:-1].argmax(-1)
    return float((guessed == tokens[:, 65:]).float().mean())


@check(
    "music_transformer_rel",
    narrowed={
        "peak extra memory": "the largest tensor, below n x n x d: scores themselves are n x n"
    },
)
def relative() -> Claims:
    """Distances looked up equal distances gathered; memory is linear; lengths carry over."""
    worst = 0.0
    for n, reach, causal in ((20, 19, True), (33, 8, True), (20, 19, False)):
        layer = RelativeAttention(32, heads=4, reach=reach, causal=causal)
        x = torch.randn(2, n, 32)
        worst = max(worst, gap(layer(x), _skewed_by_hand(layer, x, reach)))
    biggest = {}
    for n in (256, 512):
        layer = RelativeAttention(32, heads=2, reach=n - 1, causal=True)
        with Largest() as seen, torch.no_grad():
            layer(torch.randn(1, n, 32))
        biggest[n] = seen.bytes
    gathered = 512 * 512 * 16 * 2 * 4
    accuracy = {
        "relative": _period("music_transformer_rel", reach=63),
        "absolute": _period("mha", absolute="learned", longest=128),
    }
    yield claim(
        "Skewed result equals", "difference from the formula, every pair gathered", worst
    ).within(1e-6, "the naive gather", because=CATALOGUE)
    yield claim("peak extra memory", "largest tensor at 512 tokens, bytes", biggest[512]).below(
        gathered,
        "n x n x d",
        times=0.25,
        because="n x n scores of 16 channels are a sixteenth of it",
    )
    yield claim("Model trained at L=64", "accuracy at 128", accuracy["relative"]).above(
        0.95, "keeps it", because="nothing is random after the first period: all can be right"
    )
    yield claim("Model trained at L=64", "accuracy at 128 ", accuracy["relative"]).above(
        accuracy["absolute"],
        "learned absolute positions, trained alike",
        plus=0.1,
        because="a drop that no chance explains (32 x 63 answers)",
    )
