"""Budgets fall in even steps and add up; without the slope it is SnapKV; planted keys stay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.models.site import Site, Sites
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import restart
from regard.papers.shared.small_llama import llama, step_of
from regard.policies.budget import Budget
from regard.policies.evicting import PyramidKV, SnapKV
from regard.verbs import shrink


def sites_of(layers: int, heads: int, kv_heads: int, size: int) -> Sites:
    """Sites of a made model."""
    return Sites(
        Site(x, "self", f"layers.{x}", heads, kv_heads, size, causal=True) for x in range(layers)
    )


@check(
    "pyramid_kv",
    beyond="LongBench; the demo model's curves are in benchmarks/results/shrink-demo.json",
)
def pyramid() -> Claims:
    """Budgets fall in even steps and add up; without the slope it is SnapKV; planted keys stay."""
    layers, n, w, c = 8, 4000, 8, 400  # 10%; the last layer keeps 19 older keys
    sites = sites_of(layers, 4, 2, 16)
    none = torch.nn.Linear(1, 1)

    def kept(policy: SnapKV, site: Site, planted: Tensor | None = None) -> Tensor:
        restart(f"layer {site.layer}")
        q, k, v = torch.randn(1, 4, n, 16), torch.randn(1, 2, n, 16), torch.randn(1, 2, n, 16)
        if planted is not None:
            q[:, :, -w:] = q[:, :1, -1:].clone()
            k[:, :, planted] = 6 * q[:, :1, -1:]
        policy.begin(none, sites, Budget(tokens=c))
        found = policy.slots(step_of(q, k, v, site))
        assert found is not None
        return found

    def by_equation(site: Site) -> Tensor:
        """SnapKV's choice, from the weights of the last w queries written out."""
        restart(f"layer {site.layer}")
        q, k = torch.randn(1, 4, n, 16), torch.randn(1, 2, n, 16)
        scores = q[:, :, -w:] @ k.repeat_interleave(2, 1).mT / 4  # the root of 16 channels
        unseen = torch.arange(n) > torch.arange(n - w, n)[:, None]
        votes = scores.masked_fill(unseen, -torch.inf).softmax(-1).sum(2)[..., : n - w]
        near = F.avg_pool1d(votes, flat.kernel, 1, flat.kernel // 2).unflatten(1, (2, 2)).mean(2)
        older = near.topk(c - w).indices
        return torch.cat((older, torch.arange(n - w, n).expand(1, 2, w)), -1).sort().values

    pyramid_, flat = PyramidKV(window=w), PyramidKV(window=w, beta=1.0)
    sizes = [kept(pyramid_, s).shape[-1] for s in sites]
    steps = torch.tensor(sizes).diff()
    same = sum(torch.equal(kept(flat, s), kept(SnapKV(window=w), s)) for s in sites)
    planted = torch.tensor([30, 150, 290])  # with their neighbors, 15 places after pooling
    survive = sum(
        all(set(planted.tolist()) <= set(own.tolist()) for own in kept(pyramid_, s, planted)[0])
        for s in sites
    )
    made: Any = llama()
    ids = torch.randint(3, 64, (1, 60))
    with torch.no_grad():
        plain = made(ids).logits
        with shrink(made, "pyramid_kv", keep=4000, check=False):
            identical = bool(torch.equal(made(ids).logits, plain))
    older = sum(x - w for x in sizes)
    written = sum(torch.equal(kept(flat, s).sort().values, by_equation(s)) for s in sites)
    yield claim("Sum of kept old", "older keys of all layers", older).within(
        layers, "m (C - w)", value=layers * (c - w), because="rounding: one a layer"
    )
    yield claim(
        "Sum of kept old", "largest step between layers", int(steps.max() - steps.min())
    ).at_most(1, "even steps", because="rounding: one")
    yield claim("Sum of kept old", "logits identical with room for all", identical).equals(
        True, "the model"
    )
    yield claim("beta giving min = max", "layers with SnapKV's keys", same).equals(layers, "all")
    yield claim(
        "beta giving min = max", "layers with the keys that SnapKV's equation chooses", written
    ).equals(layers, "all")
    yield claim("first layer keeps", "keys of the first layer", sizes[0]).at_least(
        sizes[-1], "keys of the last"
    )
    yield claim("Plant keys strongly", "layers that keep all planted keys", survive).equals(
        layers, "all"
    )
