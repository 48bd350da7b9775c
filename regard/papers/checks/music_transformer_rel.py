"""Distances looked up equal distances gathered; memory is linear; lengths carry over."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regard.layers.attention import joined
from regard.layers.building import model
from regard.layers.relative import RelativeAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
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


class _Embeddings(TorchDispatchMode):
    """Keep the numbers of the largest tensor whose last axis are the channels of a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the base has no types
        self.channels, self.most = channels, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, made)):
            if isinstance(one, Tensor) and one.dim() and one.shape[-1] == self.channels:
                self.most = max(self.most, one.numel())
        return made


@check("music_transformer_rel")
def relative() -> Claims:
    """Distances looked up equal distances gathered; memory is linear; lengths carry over."""
    worst = 0.0
    for n, reach, causal in ((20, 19, True), (33, 8, True), (20, 19, False)):
        layer = RelativeAttention(32, heads=4, reach=reach, causal=causal)
        x = torch.randn(2, n, 32)
        worst = max(worst, gap(layer(x), _skewed_by_hand(layer, x, reach)))
    # Scores are n x n whatever positions are: the table is what would be gathered to n x n x d.
    ours, naive = {}, {}
    for n in (256, 512):
        layer = RelativeAttention(32, heads=2, reach=n - 1, causal=True)
        x = torch.randn(1, n, 32)
        for most, forward in (
            (ours, layer),
            (naive, partial(_skewed_by_hand, layer, reach=n - 1)),
        ):
            with _Embeddings(layer.head_dim) as seen, torch.no_grad():
                forward(x)
            most[n] = seen.most
    accuracy = {
        "relative": _period("music_transformer_rel", reach=63),
        "absolute": _period("mha", absolute="learned", longest=128),
    }
    yield claim(
        "Skewed result equals", "difference from the formula, every pair gathered", worst
    ).within(1e-6, "the naive gather", because=CATALOGUE)
    for n in (256, 512):
        yield claim("peak extra memory", f"numbers with channels at {n} tokens", ours[n]).equals(
            2 * (2 * n - 1) * 16, "a table of 2 n - 1 distances, of two heads"
        )
    yield claim(
        "peak extra memory", "numbers with channels at 512, every pair gathered", naive[512]
    ).equals(2 * 512 * 512 * 16, "n x n x d of two heads")
    yield claim(
        "peak extra memory", "numbers with channels at 512 tokens, of all", ours[512]
    ).below(naive[512], "every pair gathered", times=0.01, because="far less: 2 n of n x n")
    yield claim("Model trained at L=64", "accuracy at 128", accuracy["relative"]).above(
        0.95, "keeps it", because="nothing is random after the first period: all can be right"
    )
    yield claim("Model trained at L=64", "accuracy at 128 ", accuracy["relative"]).above(
        accuracy["absolute"],
        "learned absolute positions, trained alike",
        plus=0.1,
        because="a drop that no chance explains (32 x 63 answers)",
    )
