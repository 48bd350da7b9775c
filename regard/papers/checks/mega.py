"""The moving average is its kernel; one chunk is no chunk; a closed gate is the identity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.weigh import Laplace
from regard.layers.averaging import DampedAverage
from regard.layers.gated_averages import (
    ChunkedMovingAverageGated,
    LaplaceMovingAverageGated,
    MovingAverageGated,
)
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, FLOAT64, claim
from regard.papers.shared.linear_cost import scene_of
from regard.papers.shared.measure import gap


def _written_out(layer: LaplaceMovingAverageGated, x: Tensor) -> Tensor:
    """Follow the equations of a causal layer: x [b, n, dim] to the same."""
    n = x.shape[1]
    averaged = layer.average(x, scene_of(x))
    shared = F.silu(layer.scalings.to_shared(averaged))
    q, k = (
        shared * s + t for s, t in zip(layer.scalings.scales, layer.scalings.shifts, strict=True)
    )
    apart = torch.arange(n) - torch.arange(n)[:, None]
    reach = layer.position.table.shape[1] // 2
    bias = layer.position.table[0, apart.clamp(-reach, reach) + reach]
    scores = q @ k.mT / (torch.arange(n) + 1)[:, None] + bias
    weights = 0.5 * (1 + torch.erf((scores - math.sqrt(0.5)) * math.sqrt(2 * math.pi)))
    seen = weights.tril() @ F.silu(layer.to_v(x))
    new = F.silu(layer.to_new(averaged) + layer.to_out(F.silu(layer.to_reset(averaged)) * seen))
    update = layer.to_update(averaged).sigmoid()
    return x + update * (new - x)


@check("mega")
def mega() -> Claims:
    """The average is its kernel; one chunk is no chunk; a closed gate is the identity."""
    average, x = DampedAverage(6, size=4).double(), torch.randn(1, 40, 6).double()
    a, d = average.rates[:, 0].sigmoid()
    powers = (1 - a * d)[..., None] ** torch.arange(40)
    kernel = (average.out[0] * a * average.into[0])[..., None] * powers
    kernel = kernel.sum(1)  # [channels, n]
    spectrum = torch.fft.rfft(kernel, 80) * torch.fft.rfft(x[0].T, 80)
    convolved = torch.fft.irfft(spectrum, 80)[:, :40].T
    fft = gap(average(x, scene_of(x))[0], convolved)

    plain, y = MovingAverageGated(32, causal=True), torch.randn(2, 24, 32)
    chunked = ChunkedMovingAverageGated(32, chunk=24, causal=True)
    chunked.load_state_dict(plain.state_dict())
    one_chunk = gap(chunked(y), plain(y))
    changed = torch.cat((y[:, :11], torch.randn(2, 13, 32)), 1)
    leak = gap(plain(changed)[:, :11], plain(y)[:, :11])
    with torch.no_grad():
        plain.to_update.bias.fill_(-100.0)
    identity = gap(plain(y), y)

    at = torch.tensor(math.sqrt(0.5), dtype=torch.float64, requires_grad=True)
    value = Laplace().amount(at)
    (slope,) = torch.autograd.grad(value, at)
    judged = LaplaceMovingAverageGated(32, causal=True).double()
    written = gap(judged(y.double()), _written_out(judged, y.double()))
    yield claim("Recurrent EMA", "difference from the FFT form", fft).within(
        1e-5, "convolution by FFT", because=CATALOGUE
    )
    yield claim("chunk=n equals full", "difference from the whole", one_chunk).within(
        1e-5, "one chunk", because=FLOAT32
    )
    yield claim("update gate p=0", "difference from the input", identity).within(
        1e-5, "the input", because=FLOAT32
    )
    yield claim("Laplace f matches", "value at sqrt(1/2)", float(value.detach())).within(
        1e-6, "relu squared", value=0.5, because=FLOAT64
    )
    yield claim("Laplace f matches", "slope at sqrt(1/2)", float(slope)).within(
        1e-6, "relu squared", value=math.sqrt(2), because=FLOAT64
    )
    yield claim("Laplace f matches", "difference of a layer that weighs by it", written).within(
        1e-9, "its equations, written out", because=FLOAT64
    )
    yield claim("no future leak", "change before a changed token", leak).within(
        1e-5, "none", because=FLOAT32
    )
