"""Attention recalls where a gated convolution of equal width does not."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.bench.backbone import Backbone
from regard.layers.base import Layer
from regard.layers.convolution import DepthwiseConvolution
from regard.layers.inputs import Capabilities, LayerInput
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import restart, seed, seeds
from regard.papers.shared.until_learned import fit_until
from regard.tasks.recall import Mqar


class GatedConvolution(Layer):
    """Zoology's BaseConv: a linear map times a convolution of three taps, `(W u + b) * conv(u)`."""

    can = Capabilities(bidirectional=False, cross=False, linear=True, constant_memory=True)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32}

    def __init__(self, dim: int, *, causal: bool = True, taps: int = 3) -> None:
        super().__init__(dim, causal=causal)
        self.gate = nn.Linear(dim, dim)
        self.near = DepthwiseConvolution(dim, size=taps, causal=causal, name="taps", bias=True)

    def compute(self, input: LayerInput) -> Tensor:
        """Gate the neighborhood of each token."""
        gated: Tensor = self.gate(input.x) * self.near(input.x, input)
        return gated


def _recalled(layer: str, task: Mqar, most: int) -> tuple[float, int]:
    """Accuracy of a backbone of two layers, and the steps it was trained."""
    restart()
    net, drawn = Backbone(layer, task, "cs", heads=1), seeds()

    def loss() -> Tensor:
        batch = task.batch(32, next(drawn))
        return task.loss(net(batch), batch)

    steps = fit_until(net.parameters(), loss, 0.1, most)
    batch = task.batch(500, seed())
    with torch.no_grad():
        return task.score(task.answers(net(batch)), batch), steps


@check(
    "mqar_zoology",
    narrowed={
        "V=256,N=64": "V=64, N=32 and batches of 32, which end when attention has learned the task"
    },
)
def recall() -> Claims:
    """Attention recalls where a gated convolution of equal width does not."""
    task = Mqar(vocab=64, length=32, pairs=4)
    batch = task.batch(500, seed())
    told = batch.x[:, :8].view(500, 4, 2)
    rows, places = batch.asked.nonzero().unbind(1)
    earlier = (told[rows, :, 0] == batch.x[rows, places][:, None]).nonzero()
    same = told[rows[earlier[:, 0]], earlier[:, 1], 1] == batch.y[rows, places][earlier[:, 0]]
    once = bool((batch.asked.sum(1) == 4).all()) and len(earlier) == len(rows)

    gated = f"{GatedConvolution.__module__}:GatedConvolution"
    attention, steps = _recalled("mha", task, 1500)
    convolution, _ = _recalled(gated, task, steps)
    yield claim("Every labelled input", "each asked token was told before, once", once).equals(
        True, "a key that came earlier"
    )
    yield claim(
        "Every labelled input",
        "share of answers that are the value told",
        float(same.double().mean()),
    ).equals(1.0, "all")
    yield claim("V=256,N=64", "accuracy of attention", attention).above(
        0.95, "the catalogue saw 0.99", because="and 0.3 before the jump"
    )
    yield claim("V=256,N=64", "accuracy of a gated convolution", convolution).below(
        0.3, "attention before its jump", because="the catalogue saw 0.10"
    )
