"""Rings and the class token share out all weight; known heads have known rings."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.copier_models import looked, pointing
from regard.papers.shared.measure import gap
from regard.probes.importance import taken_out
from regard.probes.shape import Rings


@check(
    "vit_head_profile",
    narrowed={"masking a head": "one measure of importance of the paper's three"},
    beyond="trained vision transformers",
)
def rings() -> Claims:
    """Rings and the class token share out all weight; known heads have known rings."""
    rows = columns = 5
    n = 1 + rows * columns
    site = Site(0, module="attention", heads=2, kv_heads=2, grid=(rows, columns))
    q, k, v = torch.randn(3, 1, 2, n, 8)
    probe = Rings()
    looked(probe, Call.of(q, k, v, Rule(), site=site))
    total = next(iter(probe.told().details["rings"].values())).sum(1)
    whole = float((total - 1).abs().max())

    step = torch.arange(n)
    step[1:] = torch.where(step[1:] % columns == 0, step[1:] - 1, step[1:] + 1)
    shifted = pointing(step.repeat(2, 1)).replace(rule=Rule(), site=site)
    one = Rings()
    looked(one, shifted)
    near = float(next(iter(one.told().details["rings"].values()))[:, 1].min())

    even = Rings()
    looked(even, Call.of(*(torch.zeros(1, 2, n, 4),) * 3, Rule(), site=site))
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    hops = (place[:, None] - place).abs().amax(-1)
    wanted = torch.stack([(hops == h).double().sum(1).mean() for h in range(rows)]) / n
    uniform = gap(next(iter(even.told().details["rings"].values()))[0, :-1], wanted)

    layer = Attention(16, heads=2)
    with torch.no_grad():
        layer.to_out.weight[:, 8:] = 0
    x = torch.randn(1, 9, 16)
    with attach(layer, check=False) as found:
        (attends,) = list(found.sites)
    with attach(layer, taken_out([(attends, 1)]), check=False):
        without = layer(x).detach()
    unfelt = gap(layer(x), without)
    yield claim("Ring sums plus CLS", "distance of sums from 1", whole).within(
        1e-6, "1", because=CATALOGUE
    )
    yield claim("a synthetic shift-by-one", "least mass on ring 1", near).within(
        1e-6, "all", value=1, because=FLOAT32
    )
    yield claim("a synthetic shift-by-one", "difference for uniform attention", uniform).within(
        1e-6, "histogram of ring sizes", because=FLOAT32
    )
    yield claim("masking a head", "change without an unused head", unfelt).equals(0.0, "none")
