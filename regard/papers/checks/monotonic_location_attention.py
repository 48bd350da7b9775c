"""Steps of one stay on target; reversing twice is nothing; copying carries over to length."""

from __future__ import annotations

import torch

from regard.layers.alignment import GlobalAlignment
from regard.layers.location import MonotonicLocation, OneStepLocation, either_way
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.source_copier import copied, copied_whole, trained


@check("monotonic_location_attention")
def monotonic() -> Claims:
    """Steps of one stay on target; reversing twice is nothing; copying carries over to length."""
    n = 100
    layer = MonotonicLocation(8, context_dim=8)
    with torch.no_grad():
        layer.to_step.weight.zero_(), layer.to_width.weight.zero_()
        layer.to_width.bias.zero_()
    source, real = torch.randn(1, n, 8), torch.ones(1, n, dtype=torch.bool)
    carried = layer.begin(source, real)
    mass = []
    with torch.no_grad():
        for t in range(n):
            layer.to_step.bias.fill_(0.0 if t == 0 else 1.0)
            weights, carried = layer.step(torch.zeros(1, 8), source, real, carried)
            mass.append(float(weights[0, t]))
    padded = torch.randint(0, 9, (2, 7, 1)).float()
    keep = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    back = torch.zeros(2, 1)
    twice = gap(either_way(either_way(padded, back, keep), back, keep), padded)
    accuracy, whole = {}, {}
    for name, make in (
        ("location", lambda: OneStepLocation(32, context_dim=32)),
        ("content", lambda: GlobalAlignment(32, context_dim=32)),
    ):
        restart()
        made = trained(make(), (5, 11), 800)
        accuracy[name] = copied(made, 50)
        whole[name] = copied_whole(made, 50)
    yield claim("With steps forced", "least mass on its place of 100", min(mass)).above(
        0.9, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("flip(flip(E))=E", "difference under padding", twice).equals(0.0, "E")
    yield claim("trained on copy", "strings right at length 50", whole["location"]).above(
        0.95, "the catalogue's bound", because=CATALOGUE
    )
    yield claim(
        "trained on copy", "strings right at length 50, attention by content", whole["content"]
    ).at_most(0, "none", plus=0.05, because="near 0: of 64 strings, three")
    yield claim("trained on copy", "tokens right at length 50", accuracy["location"]).above(
        0.95, "the catalogue's bound", because=CATALOGUE
    )
    yield claim(
        "trained on copy", "tokens right at length 50, attention by content", accuracy["content"]
    ).below(0.5, "half", because="chance is an eighth, exact match near 0")
