"""The check of the row that all others start from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.support import Causal
from regard.layers.attention import Attention, joined
from regard.layers.encoder_decoder import EncoderDecoder
from regard.layers.positions import Sinusoidal
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.run.api import plan


def _torch_says(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    k, v = layer.keys(x)
    heads = [
        F.scaled_dot_product_attention(layer.queries(x)[:, i], k[:, i], v[:, i], mask)
        for i in range(layer.heads)
    ]
    mixed: Tensor = layer.to_out(joined(torch.stack(heads, 1)))
    return mixed


@check("transformer")
def transformer() -> Measured:
    """Heads equal torch's attention, decoding the whole, and positions turn with the offset."""
    x, real = torch.randn(2, 19, 64), torch.ones(2, 19, dtype=torch.bool)
    real[0, 13:] = False
    causal = Attention(64, heads=8, causal=True)
    ahead = Attention(64, heads=8)
    heads = max(
        gap(causal(x), _torch_says(causal, x, torch.ones(19, 19, dtype=torch.bool).tril())),
        gap(ahead(x, padding=real), _torch_says(ahead, x, real[:, None].expand(-1, 19, -1))),
    )

    model = EncoderDecoder(dim=64, heads=8, layers=2, vocab=50).eval()
    source, target = torch.randint(0, 50, (2, 19)), torch.randint(0, 50, (2, 11))
    whole = model(source, target, real)
    memory = model.decoder.memory()
    context = model.encode(source, real)
    with torch.no_grad():
        steps = [
            model.decode(target[:, i : i + 1], None if i else context, None if i else real, memory)
            for i in range(11)
        ]
    decoded = gap(torch.cat(steps, 1), whole)

    # For each offset one block-diagonal rotation takes PE[p] to PE[p + offset], for every p.
    codes = Sinusoidal(64)(torch.arange(200)).double().unflatten(1, (32, 2))
    turned = 0.0
    for offset in (1, 7, 50):
        speed = 10_000.0 ** (-torch.arange(32, dtype=torch.float64) / 32) * offset
        sin, cos = codes[:-offset].unbind(-1)
        moved = torch.stack(
            (sin * speed.cos() + cos * speed.sin(), cos * speed.cos() - sin * speed.sin()), -1
        )
        turned = max(turned, gap(moved, codes[offset:]))

    spread = {}
    for d in (16, 64, 256):
        q, k = torch.randn(2, 500, d)
        spread[d] = float((q @ k.T).var())
    scaled = [spread[d] / d for d in spread]
    grows = all(0.9 < s < 1.1 for s in scaled)
    plan_ = plan(*(torch.randn(1, 8, 19, 64) for _ in range(3)), Causal())
    return Measured(
        "each head equals torch's scaled_dot_product_attention under causal and padding masks; "
        "decoding with kept keys equals the whole; one rotation takes every position's code to "
        "that of the position k later; unscaled scores vary like d, scaled ones by about 1",
        max(heads, decoded) < 1e-5 and turned < 1e-4 and grows,
        {"heads": heads, "decoded": decoded, "positions": turned, "executor": plan_.executor,
         **{f"variance at {d}": v for d, v in spread.items()}},
        matches="torch.nn.functional.scaled_dot_product_attention",
    )  # fmt: skip
