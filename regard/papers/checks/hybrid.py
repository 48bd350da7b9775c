"""The check of attention and a state space side by side."""

from __future__ import annotations

import torch

from regard.layers.hybrid import Hymba
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap


@check("hymba")
def hymba() -> Measured:
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
    return Measured(
        "a share of 0 for the state leaves attention, and the other way round; token by token, "
        "the meta tokens read once, equals the whole; queries far beyond the window see every meta "
        "token and no other token out of the window; a decoder's memory is bounded",
        max(*alone.values(), decoded) < 1e-5 and reaches > 0 and beyond == 0
        and held[1] <= 1.5 * held[0],
        {"attention alone": alone[1], "state alone": alone[0], "decoded": decoded,
         "least pull of a meta token": reaches, "pull from out of the window": beyond,
         "bytes at 60": held[0], "bytes at 120": held[1]},
        left_out="sharing of keys by pairs of layers, entropy and recall of trained models",
    )  # fmt: skip
