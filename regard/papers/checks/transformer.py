"""Heads equal torch's attention, decoding the whole, and positions turn with the offset."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import Attention, joined
from regard.layers.encoder_decoder import EncoderDecoder
from regard.layers.positions import Sinusoidal
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap


def _torch_says(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    k, v = layer.keys(x)
    heads = [
        F.scaled_dot_product_attention(layer.queries(x)[:, i], k[:, i], v[:, i], mask)
        for i in range(layer.heads)
    ]
    mixed: Tensor = layer.to_out(joined(torch.stack(heads, 1)))
    return mixed


@check("transformer")
def transformer() -> Claims:
    """Heads equal torch's attention, decoding the whole, and positions turn with the offset."""
    x, real = torch.randn(2, 19, 64), torch.ones(2, 19, dtype=torch.bool)
    real[0, 13:] = False
    causal = Attention(64, heads=8, causal=True)
    ahead = Attention(64, heads=8)
    # What a layer gives at padding counts for nothing: real tokens are compared.
    padded = _torch_says(ahead, x, real[:, None].expand(-1, 19, -1))
    heads = max(
        gap(causal(x), _torch_says(causal, x, torch.ones(19, 19, dtype=torch.bool).tril())),
        gap(ahead(x, padding=real)[real], padded[real]),
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
    yield claim(
        "(a) Multi-head output", "largest difference of a head, causal and padding masks", heads
    ).within(1e-5, "torch's scaled_dot_product_attention", because=CATALOGUE, independent=True)
    yield claim("cached decoding", "difference", decoded).within(
        1e-5, "the full pass", because=FLOAT32
    )
    yield claim("(b) For each offset", "largest difference, offsets 1, 7 and 50", turned).within(
        1e-4, "PE[p + k]", because="float32: angles of up to 200 keep five digits"
    )
    for d, variance in spread.items():
        yield claim("(c) Variance", f"variance of unscaled logits, d = {d}", variance).within(
            0.1 * d, "d", value=d, because="250,000 logits of 1,000 vectors: its spread is 4%"
        )
