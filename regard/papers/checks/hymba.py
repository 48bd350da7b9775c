"""One branch off leaves the other; meta tokens stay in sight; decoding keeps a fixed state."""

from __future__ import annotations

import torch

from regard.layers.hybrid import Hymba
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap


@check(
    "hymba",
    left_out={
        "entropy of attention on the first": "no model is trained here",
        "recall task needs": "no model is trained here",
    },
    beyond="meta tokens once per model, and keys shared by pairs of layers",
)
def hymba() -> Claims:
    """One branch off leaves the other; meta tokens stay in sight; decoding keeps a fixed state."""
    layer, x = Hymba(32, heads=4, window=8, meta=5), torch.randn(2, 60, 32)
    full = torch.cat((layer.meta.expand(2, -1, -1), x), 1)
    alone = {}
    for off, part, norm in ((1, layer.attention, layer.norms[0]), (0, layer.state, layer.norms[1])):
        with torch.no_grad():
            layer.shares.fill_(1.0)
            layer.shares[off] = 0.0
            alone[off] = gap(layer(x), layer.to_out(norm(part(full)[:, 5:])) / 2)
            layer.shares.fill_(1.0)
    memory = layer.memory()
    with torch.no_grad():
        steps = torch.cat([layer(x[:, i : i + 1], memory=memory) for i in range(60)], 1)
    decoded = gap(steps, layer(x))
    # Only attention carries meta tokens far: with the state's share at zero their pull is its own.
    with torch.no_grad():
        layer.shares[1] = 0.0
    (pull,) = torch.autograd.grad(layer(x)[:, 59].square().sum(), layer.meta)
    reaches = float(pull.abs().min())
    y = x.clone().requires_grad_()
    (seen,) = torch.autograd.grad(layer(y)[:, 59].square().sum(), y)
    beyond = float(seen[:, :51].abs().max())
    held = []
    for n in (60, 120):
        memory = layer.memory()
        with torch.no_grad():
            for _ in range(n):
                layer(torch.randn(1, 1, 32), memory=memory)
        held.append(memory.nbytes)
    yield claim("beta2=0 gives", "difference, state off", alone[1]).within(
        1e-5, "its attention alone", because=FLOAT32
    )
    yield claim("beta2=0 gives", "difference, attention off", alone[0]).within(
        1e-5, "its state space alone", because=FLOAT32
    )
    yield claim("stepwise decode", "difference", decoded).within(
        1e-5, "the full forward", because=FLOAT32
    )
    yield claim("meta-prefix precompute", "the same, the meta tokens read once", decoded).within(
        1e-5, "the full forward", because=FLOAT32
    )
    yield claim("queries far beyond", "least gradient of a meta token", reaches).above(0.0, "none")
    yield claim(
        "queries far beyond", "largest gradient of tokens out of the window", beyond
    ).equals(0.0, "none")
    yield claim("stepwise decode", "bytes at 120 tokens", held[1]).at_most(
        held[0], "at 60", times=1.5, because="a memory that grows would be twice"
    )
