"""Checks of rows about moving averages, and memories that learn while they read."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.features import unit
from regard.core.support import Window
from regard.layers.averaging import DampedAverage
from regard.layers.gated_averages import ChunkedMovingAverageGated, MovingAverageGated
from regard.layers.neural_memory import Titans
from regard.layers.registry import layer as layer_named
from regard.layers.stack import Block
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.recurrent import scene_of
from regard.papers.checks.training import fit
from regard.run.scanning import scan, scan_momentum


@check("mega")
def mega() -> Measured:
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
    met = max(abs(float(value.detach()) - 0.5), abs(float(slope) - math.sqrt(2)))
    return Measured(
        "the recurrent average equals its convolution by FFT; one chunk for the whole text is no "
        "chunk; an update gate of 0 gives the input back; the future changes nothing; Laplace "
        "meets relu squared at sqrt(1/2) in value (0.5) and slope (sqrt 2)",
        fft < 1e-5 and one_chunk < 1e-5 and leak < 1e-5 and identity < 1e-5 and met < 1e-6,
        {"fft": fft, "one chunk": one_chunk, "leak": leak, "closed gate": identity,
         "laplace": met},
        left_out="attention weighed by the Laplace function; the layer has softmax",
    )  # fmt: skip


@check("titans")
def titans() -> Measured:
    """Plain steps are the delta rule; chunks are the loop; what the window lost is recalled."""
    k, v = unit(torch.randn(1, 2, 30, 8)).double(), torch.randn(1, 2, 30, 8).double()
    far = -1e9
    steps, _ = scan_momentum(k, k, v, log_momentum=far, log_decay=0.0, beta=1.0)
    rule, _ = scan(k, k, v, beta=1.0)
    delta, returned = gap(steps, rule), gap(steps, v)
    rates = {
        "log_momentum": F.logsigmoid(torch.randn(1, 2, 30)).double(),
        "log_decay": F.logsigmoid(3 + torch.randn(1, 2, 30)).double(),
        "beta": torch.rand(1, 2, 30).double(),
    }
    q = torch.randn(1, 2, 30, 8).double()
    memory = velocity = torch.zeros(1, 2, 8, 8).double()
    loop = []
    for t in range(30):  # the paper's equations, step by step
        eta, keep = rates["log_momentum"][..., t].exp(), rates["log_decay"][..., t].exp()
        miss = v[:, :, t] - torch.einsum("bhd,bhde->bhe", k[:, :, t], memory)
        step = torch.einsum("bhd,bhe->bhde", k[:, :, t], miss) * rates["beta"][..., t, None, None]
        velocity = eta[..., None, None] * velocity + step
        memory = keep[..., None, None] * memory + velocity
        loop.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], memory))
    wanted = torch.stack(loop, 2)
    chunks = max(gap(scan_momentum(q, k, v, chunk=c, **rates)[0], wanted) for c in (1, 7, 64))
    held = []
    for n in (8, 64):
        layer = Titans(32, heads=4, window=4)
        kept = layer.memory()
        with torch.no_grad():
            for _ in range(n):
                layer(torch.randn(1, 1, 32), memory=kept)
        held.append(kept.nbytes)
    recalled = {name: _recall(name) for name in ("titans", "mha")}
    return Measured(
        "without momentum and forgetting, whole steps on unit keys are the delta rule, and the "
        "last pair is returned; the chunked scan equals the paper's equations step by step; a "
        "decoder's memory is bounded; pairs beyond the window are recalled far better than by the "
        "window alone",
        max(delta, returned, chunks) < 1e-5 and held[1] < 2 * held[0]
        and recalled["titans"] > recalled["mha"] + 0.3,
        {"delta rule": delta, "last pair": returned, "step by step": chunks,
         "bytes at 8": held[0], "bytes at 64": held[1],
         "recalled": recalled["titans"], "recalled, window alone": recalled["mha"]},
        left_out="memories deeper than one linear map",
    )  # fmt: skip


def _recall(name: str) -> float:
    """Accuracy of naming the value of a key that was shown 12 to 14 tokens before."""
    torch.manual_seed(0)
    given = {"window": 4} if name == "titans" else {"support": Window(4)}
    blocks = nn.ModuleList(
        Block(layer_named(name, 48, heads=4, causal=True, **given)) for _ in "ab"
    )
    names, values = nn.Embedding(32, 48), nn.Embedding(17, 48)
    last = nn.Linear(48, 16)

    def batch(rows: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Draw eight pairs of a name and a value, filler, and a name to recall (16: no value)."""
        known = torch.rand(rows, 16).argsort(1)[:, :8]
        told = torch.randint(0, 16, (rows, 8))
        asked = torch.randint(0, 3, (rows, 1))  # early pairs, long out of the window
        filler = torch.randint(16, 32, (rows, 6))
        name = torch.cat((known, filler, known.gather(1, asked)), 1)
        return (name, F.pad(told, (0, 7), value=16)), told.gather(1, asked)[:, 0]

    def scores(name: Tensor, value: Tensor) -> Tensor:
        x = names(name) + values(value)
        for block in blocks:
            x = block(x)
        answer: Tensor = last(x[:, -1])
        return answer

    def loss() -> Tensor:
        tokens, wanted = batch(64)
        return F.cross_entropy(scores(*tokens), wanted)

    held = [p for part in (blocks, names, values, last) for p in part.parameters()]
    fit(held, loss, 400, 4e-3)
    tokens, wanted = batch(1000)
    with torch.no_grad():
        return float((scores(*tokens).argmax(-1) == wanted).float().mean())
