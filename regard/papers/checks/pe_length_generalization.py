"""No position still counts places, and relative ones do not mind a shift."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.support import Causal
from regard.layers.attention import Attention
from regard.layers.positions import Sinusoidal
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.run.api import attend
from regard.tasks.copying import pattern_distance


def _maps(layer: Attention, x: Tensor) -> Tensor:
    q, (k, _) = layer.queries(x), layer.keys(x)
    eye = torch.eye(x.shape[1]).expand(len(x), q.shape[1], -1, -1)
    return attend(q, k, eye, Causal())


@check(
    "pe_length_generalization",
    left_out={
        "Toy copy": (
            "trained models: the row itself asks not to assert their ranking; `regard bench "
            "mha:position=rotary mha:position=alibi --positions none --tasks copy` trains "
            "them. One seed here, 1,000 steps on up to 10 words of 16: NoPE .76/.43, sinusoidal "
            ".37/.20, T5 .75/.69, ALiBi .97/.88"
        )
    },
)
def positions() -> Claims:
    """No position still counts places, and relative ones do not mind a shift."""
    n = 40
    flat, first = torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1)
    first[:, :, 0] = 1
    counted = attend(flat, flat, first, Causal())[0, 0, :, 0]
    place = gap(counted, 1 / torch.arange(1, n + 1))
    x = torch.randn(2, n, 64)
    shifts = {}
    for scheme in ("rotary", "alibi", "t5"):
        layer = Attention(64, heads=4, causal=True, position=scheme)
        shifts[scheme] = gap(layer(x), layer(x, positions=torch.arange(n) + 37))
    codes = Sinusoidal(64)(torch.arange(n + 37))
    layer = Attention(64, heads=4, causal=True)
    absolute = gap(layer(x + codes[:n]), layer(x + codes[37:]))
    layers = [Attention(64, heads=4, causal=True) for _ in range(2)]
    maps = [[_maps(layer, x)] for layer in layers]
    own, other = pattern_distance(maps[0], maps[0]), pattern_distance(*maps)
    yield claim("Exact: zero-score NoPE", "difference of the output", place).within(
        1e-6, "1/t", because=FLOAT32
    )
    for scheme, moved in shifts.items():
        yield claim("rotary/ALiBi logits", f"change by a shift of 37, {scheme}", moved).within(
            1e-4, "none", because="float32: angles of up to 77 keep five digits"
        )
    yield claim("rotary/ALiBi logits", "change by a shift of 37, sinusoidal", absolute).above(
        max(shifts.values()),
        "that of relative schemes",
        times=100,
        because="or nothing would mind a shift",
    )
    yield claim("D_AT(model,itself)=0", "distance to itself", own).equals(0, "none")
    yield claim("D_AT(model,itself)=0", "distance to another model", other).above(
        own, "that to itself"
    )
