"""The loss of tiny language models, and layers whose key heads are alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import Attention
from regard.layers.building import model
from regard.papers.seeding import restart
from regard.papers.shared.small_trainer import fit


def equal_key_heads(plain: Attention) -> None:
    """Make all key heads of a layer the same, and all value heads."""
    with torch.no_grad():
        for map_ in (plain.to_k, plain.to_v):
            one = map_.weight.unflatten(0, (plain.kv_heads, -1))[:1]
            map_.weight.copy_(one.expand(plain.kv_heads, -1, -1).flatten(0, 1))


def language_loss(steps: int = 150, draw: str = "", **settings: object) -> float:
    """Loss of a tiny language model on repeated words, the mean of its last steps.

    Models of one `draw` start alike and read the same texts.
    """
    restart(draw)
    words = torch.randint(0, 32, (24, 4))
    tiny = model(
        ["cross_layer_attention"] * 4, dim=32, heads=4, vocab=32, position="rotary", **settings
    )

    def loss() -> Tensor:
        tokens = words[torch.randint(0, 24, (32, 10))].flatten(1)
        return F.cross_entropy(tiny(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    losses = fit(tiny.parameters(), loss, steps)
    return sum(losses[-20:]) / 20
