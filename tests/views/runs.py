"""Runs made of random heads, as `see` would make them."""

import torch

import regard
from regard.core.call import Call
from regard.models.engine import Engine
from regard.models.site import Site
from regard.probes import make_probes
from regard.probes.maps import DeepHeads, Maps
from regard.views import Seen


def seen(layers=2, heads=4, groups=2, n=90, d=16, keep=((0, 1), (1, 2)), rule=None, grid=None):
    """Look at random heads."""
    torch.manual_seed(layers * n)
    rule = regard.Rule(regard.Causal()) if rule is None else rule
    sites = [
        Site(i, module=f"layers.{i}.attn", heads=heads, kv_heads=groups, head_size=d, grid=grid)
        for i in range(layers)
    ]
    probes = make_probes(["previous_token", "sink", "entropy"])
    maps, deep = Maps(n), DeepHeads([(sites[layer], head) for layer, head in keep])
    engine = Engine([*probes, maps, deep])
    for site in sites:
        q, k, v = (torch.randn(1, h, n, d) for h in (heads, groups, groups))
        engine.run(Call.of(1.5 * q, k, v, rule, site=site))
    words = [f" w{i % 17}" for i in range(n)]
    scores = {probe.name: probe.result() for probe in probes}
    model = {"name": "a random model", "kind": "Random", "dtype": "float32"}
    return Seen(model, sites, scores, words, maps.found, deep.found)
