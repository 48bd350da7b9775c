"""A layer without some heads is the layer whose heads are gated to nothing."""

import pytest
import torch

from regard.conversions import cut_heads
from regard.core.errors import RegardError
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.probes.importance import taken_out

CASES = {
    "one": ({"heads": 4}, [0]),
    "two": ({"heads": 4, "bias": True, "position": "rotary"}, [1, 3]),
    "a group": ({"heads": 6, "kv_heads": 3, "value_dim": 5, "qk_norm": torch.nn.RMSNorm}, [2, 3]),
    "none": ({"heads": 4}, []),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_cutting_is_gating(name, seed):
    settings, heads = CASES[name]
    layer = Attention(48, causal=True, **settings)
    smaller = cut_heads(layer, heads)
    x = torch.randn(2, 9, 48)
    with attach(layer, check=False) as found:
        (site,) = list(found.sites)
    with attach(layer, taken_out([(site, h) for h in heads]), check=False):
        gated = layer(x)
    torch.testing.assert_close(smaller(x), gated, atol=1e-6, rtol=1e-5)
    assert smaller.heads == layer.heads - len(heads)
    sizes = [sum(p.numel() for p in one.parameters()) for one in (smaller, layer)]
    assert (sizes[0] < sizes[1]) == bool(heads)


@pytest.mark.parametrize(
    ("settings", "heads", "said"),
    [
        ({"heads": 4}, [0, 1, 2, 3], "heads"),
        ({"heads": 4}, [4], "heads"),
        ({"heads": 4, "kv_heads": 2}, [0], "whole groups"),
        ({"heads": 4, "position": "alibi"}, [0], "plain attention"),
    ],
)
def test_what_cannot_be_cut_is_refused(settings, heads, said):
    with pytest.raises(RegardError, match=said):
        cut_heads(Attention(32, causal=True, **settings), heads)
