"""What the tests of probes share: calls with whole matrices, and heads that point."""

import torch

import regard
from regard.core.call import Call
from regard.models.engine import Engine
from regard.models.site import Site
from regard.models.weights import closed_weights

CAUSAL = regard.Rule(regard.Causal())


def site(heads: int, layer: int = 0, kv_heads: int | None = None, **more) -> Site:
    return Site(layer, module=f"attn.{layer}", heads=heads, kv_heads=kv_heads or heads, **more)


def random_call(rule=CAUSAL, n=24, heads=4, groups=2, b=2, seed=0, layer=0) -> Call:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(b, x, n, 8, dtype=torch.float64, generator=draw)
        for x in (heads, groups, groups)
    )
    return Call.of(2 * q, k, v, rule, site=site(heads, layer, groups))


def pointing(keys, rule=CAUSAL) -> Call:
    """Heads whose query i looks at keys[h][i] alone."""
    keys = torch.as_tensor(keys)
    keys = keys[None] if keys.dim() == 1 else keys
    h, n = keys.shape
    eye = torch.eye(n, dtype=torch.float64)
    return Call.of(1e4 * eye[keys][None], eye.expand(1, h, n, n), eye.expand(1, h, n, n), rule,
                site=site(h))  # fmt: skip


def weights(call: Call) -> torch.Tensor:
    return closed_weights(call, "test").double()


def looked(probe, call: Call, reading=None):
    if reading is not None:
        probe.show(reading)
    Engine([probe]).run(call)
    return probe.told().values[call.site]
