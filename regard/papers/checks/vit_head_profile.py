"""Rings and the class token share out all weight; known heads have known rings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.rule import Rule
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, FLOAT64, claim
from regard.papers.shared.copier_models import looked, pointing
from regard.papers.shared.measure import gap
from regard.probes.importance import pruning_effects
from regard.probes.shape import Rings


class _Classifier(nn.Module):
    """A layer of attention, and classes read off its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = Attention(16, heads=2), nn.Linear(16, 5)
        self.state = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, classes]."""
        self.state = (x + self.layer(x))[:, 0]
        logits: Tensor = self.last(self.state)
        return logits

    def embedded(self, output: Tensor) -> Tensor:
        """The class token of the last forward [b, dim]."""
        return self.state


@check(
    "vit_head_profile",
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

    model = _Classifier()
    with torch.no_grad():
        model.layer.to_out.weight[:, 8:] = 0
    x, labels = torch.randn(32, 9, 16), torch.randint(0, 5, (32,))
    with attach(model, check=False) as found:
        (attends,) = list(found.sites)
    effects = pruning_effects(
        model, x, labels, [(attends, 0), (attends, 1)], embedding=model.embedded
    )
    used, unused = effects[attends, 0], effects[attends, 1]
    yield claim("Ring sums plus CLS", "distance of sums from 1", whole).within(
        1e-6, "1", because=CATALOGUE
    )
    yield claim("a synthetic shift-by-one", "least mass on ring 1", near).within(
        1e-6, "all", value=1, because=FLOAT32
    )
    yield claim("a synthetic shift-by-one", "difference for uniform attention", uniform).within(
        1e-6, "histogram of ring sizes", because=FLOAT32
    )
    for name in ("probability", "divergence", "accuracy"):
        yield claim("masking a head", f"change of {name}", getattr(unused, name)).equals(
            0.0, "none"
        )
    # Two vectors that are equal to the bit have a cosine that is 1 but for its own rounding.
    yield claim("masking a head", "change of the class token's embedding", unused.embedding).within(
        1e-12, "none", because=FLOAT64
    )
    yield claim(
        "masking a head", "divergence without the head that is used", used.divergence
    ).above(0, "none")
    yield claim(
        "masking a head", "change of embedding without the head that is used", used.embedding
    ).above(0, "none", plus=1e-6, because="over any rounding")
