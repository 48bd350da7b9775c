"""The gradient of a gate is <out, dL/dout>, and its order prunes better than chance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.conversions import cut_heads
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Edit
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.copier_models import copier, repeat_loss
from regard.papers.shared.measure import gap
from regard.probes.importance import Importance, taken_out


@check("sixteen_heads")
def importance() -> Claims:
    """The gradient of a gate is <out, dL/dout>, and its order prunes better than chance."""
    two, _ = copier(2, heads=8)
    restart()
    stretch = torch.randint(0, 40, (6, 16))
    tokens = torch.cat([stretch, stretch], 1)
    probe, kept = Importance(definition="raw"), dict[Site, Tensor]()

    def keep(x: Tensor) -> Tensor:
        kept[len(kept)] = x  # type: ignore[index]  # keyed by order of calls, not by site
        x.retain_grad()
        return x

    def loss() -> Tensor:
        each = F.cross_entropy(
            two(tokens)[:, 16:-1].transpose(1, 2), tokens[:, 17:], reduction="none"
        )
        return each.mean(1).sum()

    two.double()  # float32 sums over 96 tokens round to more than the catalogue's 1e-6
    with attach(two, [Edit("out", keep), probe], check=False):
        loss().backward()
        gates = list(probe.gates.values())
        felt = [g.grad.abs()[..., 0, 0] for g in gates if g.grad is not None]
        by_gate = torch.stack([x.mean(0) for x in felt])
    by_output = torch.stack(
        [(x * x.grad).sum((2, 3)).abs().mean(0) for x in kept.values() if x.grad is not None]
    )
    difference = gap(by_gate, by_output)

    sites = list(probe.gates)
    places = [(sites[s], h) for s in range(2) for h in range(8)]
    many = round(0.4 * len(places))
    two.float()
    scaled = by_gate / by_gate.norm(dim=1, keepdim=True)
    order = sorted(places, key=lambda p: float(scaled[sites.index(p[0]), p[1]]))

    def pruned(heads: list[tuple[Site, int]]) -> float:
        with attach(two, taken_out(heads), check=False):
            return repeat_loss(two)

    layer = Attention(64, heads=4, causal=True)
    smaller = cut_heads(layer, [0])
    x = torch.randn(2, 9, 64)
    with attach(layer, check=False) as found:
        (site,) = list(found.sites)
    with attach(layer, taken_out([(site, 0)]), check=False), torch.no_grad():
        sliced = gap(layer(x), smaller(x))
    ours = pruned(order[:many])
    shuffles = [torch.randperm(16).tolist()[:many] for _ in range(10)]
    chance = sum(pruned([places[i] for i in few]) for few in shuffles) / 10
    yield claim("On a small trained", "difference of a gate's gradient", difference).within(
        1e-6, "Att_h . dL/dAtt_h", because=CATALOGUE
    )
    yield claim(
        "physically slicing", "difference of a layer with a head cut out of its weights", sliced
    ).within(1e-5, "the gated layer", because=FLOAT32)
    yield claim("at 40% pruned", "loss without the 6 least important of 16 heads", ours).below(
        chance, "mean of ten random choices"
    )
