"""Blocks equal the recurrence and the masked product, gradients too; the state is constant."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.layers.lightning import LightningAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, FLOAT64, claim
from regard.papers.shared.linear_cost import decode_bytes, flops_ratio, traffic_ratio
from regard.papers.shared.measure import gap
from regard.run.scanning import scan


@check("lightning_attention")
def lightning() -> Claims:
    """Blocks equal the recurrence and the masked product, gradients too; the state is constant."""
    worst = worst_gradient = 0.0
    for n, chunk in ((37, 16), (64, 64), (50, 7)):
        q, k, v = (torch.randn(1, 2, n, 5).double().requires_grad_() for _ in range(3))
        rates = torch.tensor([-0.1, -0.01]).double()
        apart = torch.arange(n)[:, None] - torch.arange(n)
        mask = torch.where(apart >= 0, (rates[:, None, None] * apart).exp(), 0.0)
        wanted = (q @ k.mT * mask) @ v
        goal = torch.randn_like(wanted)
        gradients = torch.autograd.grad((wanted * goal).sum(), (q, k, v))
        for form in ("chunked", "recurrent"):
            out, _ = scan(q, k, v, log_decay=rates, form=form, chunk=chunk)
            worst = max(worst, gap(out, wanted))
            found = torch.autograd.grad((out * goal).sum(), (q, k, v))
            worst_gradient = max([worst_gradient, *map(gap, found, gradients)])
    layer = LightningAttention(32, heads=4, depth=3, layers=12)
    rate = torch.exp(-8.0 * torch.arange(1, 5) / 4 * (1 - 3 / 12))
    rates_right = gap(layer.log_decay.exp(), rate)
    layer, x = layer.double(), torch.randn(2, 37, 32).double()
    with torch.no_grad():
        q, k, v = (
            F.linear(x, w).unflatten(-1, (4, -1)).transpose(1, 2)
            for w in (layer.to_q.weight, layer.to_k.weight, layer.to_v.weight)
        )
        apart = torch.arange(37)[:, None] - torch.arange(37)
        mask = torch.where(apart >= 0, rate[:, None, None] ** apart, 0.0)
        seen = ((F.silu(q) @ F.silu(k).mT * mask) @ v).transpose(1, 2).flatten(2)
        seen = seen / seen.square().mean(-1, keepdim=True).sqrt()
        written = F.linear(seen * F.linear(x, layer.to_gate.weight), layer.to_out.weight)
        of_layer = gap(layer(x), written)
    layer = layer.float()
    memory = [decode_bytes(layer, steps) for steps in (8, 64)]
    yield claim("Blockwise equals", "largest difference from the masked product", worst).within(
        1e-10, "(QK^T * M) V in float64", because=CATALOGUE
    )
    yield claim("gradients equal", "largest difference of gradients", worst_gradient).within(
        1e-10, "autograd of the masked product in float64", because=FLOAT64
    )
    yield claim("Blockwise equals", "difference of the layer", of_layer).within(
        1e-5, "its equation, written out over the matrix", because=CATALOGUE
    )
    yield claim("Blockwise equals", "difference of the decay of a head", rates_right).within(
        1e-6, "exp(-(8 h / H)(1 - l / L))", because=FLOAT32
    )
    yield claim("per-token time constant", "bytes of memory after 64 tokens", memory[1]).equals(
        memory[0], "after 8"
    )
    yield claim(
        "per-token time constant", "operations a token at 16k", flops_ratio(layer, 1024, 16)
    ).at_most(1, "at 1k", times=1.05, because="a quadratic term would make it 16 times")
    yield claim(
        "per-token time constant",
        "bytes read and written a token at 16k",
        traffic_ratio(layer, 1024, 16),
    ).at_most(1, "at 1k", times=1.05, because="a quadratic term would make it 16 times")
