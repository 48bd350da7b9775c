"""The moving average is its kernel; one chunk is no chunk; a closed gate is the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.layers.averaging import DampedAverage
from regard.layers.gated_averages import ChunkedMovingAverageGated, MovingAverageGated
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, FLOAT64, claim
from regard.papers.shared.linear_cost import scene_of
from regard.papers.shared.measure import gap


@check(
    "mega",
    narrowed={
        "Laplace f matches": (
            "the formula, written here: the layer of the library attends with softmax"
        )
    },
)
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

    def laplace(s: Tensor) -> Tensor:
        mean, deviation = math.sqrt(0.5), math.sqrt(1 / (4 * math.pi))
        return 0.5 * (1 + torch.erf((s - mean) / (deviation * math.sqrt(2))))

    at = torch.tensor(math.sqrt(0.5), dtype=torch.float64, requires_grad=True)
    value = laplace(at)
    (slope,) = torch.autograd.grad(value, at)
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
    yield claim("no future leak", "change before a changed token", leak).within(
        1e-5, "none", because=FLOAT32
    )
