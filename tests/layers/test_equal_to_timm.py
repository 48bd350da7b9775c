"""Our layers, with the weights of timm's attention, say what it says.

The result of a run is kept in benchmarks/equality/equal-to-timm.json.
"""

import pytest
import torch

import regard

try:
    from timm.layers import Attention as Theirs
    from timm.layers import AttentionRope
except (ImportError, RuntimeError) as missing:
    pytest.skip(f"timm does not import: {missing}", allow_module_level=True)

DIM, HEADS, N = 48, 4, 17


def with_weights_of(theirs, **settings):
    """Our multi-head attention with their weights; their q, k and v are one map."""
    ours = regard.layer("mha", dim=DIM, heads=HEADS, **settings)
    with torch.no_grad():
        for layer, rows in zip((ours.to_q, ours.to_k, ours.to_v), range(3), strict=True):
            some = slice(rows * DIM, (rows + 1) * DIM)
            layer.weight.copy_(theirs.qkv.weight[some])
            if layer.bias is not None:
                layer.bias.copy_(theirs.qkv.bias[some])
        ours.to_out.load_state_dict(theirs.proj.state_dict())
        for name, norm in (("norm_q", "q_norm"), ("norm_k", "k_norm")):
            if hasattr(ours, name):
                getattr(ours, name).load_state_dict(getattr(theirs, norm).state_dict())
    return ours


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_vision_attention(bias, normed):
    torch.manual_seed(0)
    norm = {"qk_norm": True, "norm_layer": torch.nn.LayerNorm} if normed else {}
    theirs = Theirs(DIM, num_heads=HEADS, qkv_bias=bias, **norm).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    settings = {"bias": bias, "out_bias": True}
    ours = with_weights_of(
        theirs, **settings, **({"qk_norm": torch.nn.LayerNorm} if normed else {})
    )
    x = torch.randn(2, N, DIM)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_its_rotary_attention_without_positions():
    torch.manual_seed(1)
    theirs = AttentionRope(DIM, num_heads=HEADS, qkv_bias=True, num_prefix_tokens=1).eval()
    x = torch.randn(2, N, DIM)
    ours = with_weights_of(theirs, bias=True, out_bias=True)
    assert torch.allclose(ours(x), theirs(x, rope=None), atol=1e-5)
