"""A quadratic probe reads a random code of objects; a linear one cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.analysis.binding import DiagonalPair, LinearPair, QuadraticPair, without
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim


@check(
    "is_same_object",
    beyond=(
        "that nothing is left to read, which does not hold: a new probe still tells the "
        "pairs; vision transformers"
    ),
)
def binding() -> Claims:
    """A quadratic probe reads a random code of objects; a linear one cannot."""
    d, code, features = 64, 16, 6
    mixing = torch.linalg.qr(torch.randn(d, d)).Q
    kinds = torch.randn(features, d - code)

    def images(many: int, patches: int = 24) -> tuple[Tensor, Tensor]:
        objects = torch.randint(0, 3, (many, patches))
        # What a patch shows says nothing of the object it belongs to; the code alone does.
        kind = torch.randint(0, features, (many, patches))
        codes = 4 * F.normalize(torch.randn(many, 3, code), dim=-1)
        own = codes.gather(1, objects[..., None].expand(-1, -1, code))
        x = torch.cat([kinds[kind], own], -1)
        x = x + 0.2 * torch.randn_like(x)
        return x @ mixing, objects

    train, held = images(400), images(200)
    probes = {"linear": LinearPair(d), "diagonal": DiagonalPair(d),
              "quadratic": QuadraticPair(d, code)}  # fmt: skip
    found = {}
    for name, probe in probes.items():
        probe.fit(*train, steps=500)
        found[name] = probe.accuracy(*held)
    quadratic = probes["quadratic"]
    assert isinstance(quadratic, QuadraticPair)
    blind = without(held[0], quadratic.w)
    random = without(held[0], torch.randn(code, d))
    gone, kept = (quadratic.accuracy(x, held[1]) for x in (blind, random))
    yield claim(
        "On synthetic embeddings", "accuracy of the quadratic probe", found["quadratic"]
    ).above(0.95, "the catalogue's bound", because=CATALOGUE)
    yield claim("On synthetic embeddings", "accuracy of the linear probe", found["linear"]).below(
        0.6,
        "near chance",
        because="half by chance, and as much as a linear probe can find in 200 images",
    )
    yield claim("projecting out the learned", "accuracy without its rows", gone).below(
        0.6, "chance", because="as above"
    )
    yield claim("projecting out the learned", "accuracy without random rows", kept).above(
        gone, "without its rows", plus=0.2, because="does not drop to chance: far from it"
    )
