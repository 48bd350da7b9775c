"""Routing transformer: local heads beside a peer, padding, and its clusters by a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core import errors


def in_clusters(layer, q, k, v):
    """One head, one sequence [n, d]: clusters by a loop, mean of the clusters of each token."""
    n = len(q)
    width = -(-n // layer.centers.shape[1])
    total, count = torch.zeros_like(v), torch.zeros(n)
    for center in layer.centers[0]:
        some = sorted((q @ center).topk(width).indices.tolist())
        total[some] += F.scaled_dot_product_attention(q[some], k[some], v[some])
        count[some] += 1
    return total / count.clamp_min(1)[:, None]


def test_half_the_heads_are_local():
    layer = regard.layer("routing_transformer", dim=32, heads=4, clusters=3, window=4).eval()
    assert (layer.routed, layer.local_heads) == (2, 2)
    x = torch.randn(1, 17, 32)
    with torch.no_grad():
        q, v = (y(x).view(17, 4, 8) for y in (layer.to_q, layer.to_v))
        k = layer.to_k(x).view(17, 2, 8)
        place = torch.arange(17)
        near = (place[:, None] - place).abs() < 4
        seen = []
        for head in range(4):
            if head < 2:
                unit = F.layer_norm(q[:, head], (8,))
                centers, layer.centers = layer.centers, layer.centers[head : head + 1]
                seen.append(in_clusters(layer, unit, unit, v[:, head]))
                layer.centers = centers
            else:
                args = q[:, head], k[:, head - 2], v[:, head]
                seen.append(F.scaled_dot_product_attention(*args, attn_mask=near))
        wanted = layer.to_out(torch.stack(seen, 1).flatten(1))
        torch.testing.assert_close(layer(x)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal_inside", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_padded_sequences_are_routed_as_alone(causal_inside, left):
    layer = regard.layer(
        "routing_transformer", dim=32, heads=4, clusters=5, window=3, causal_inside=causal_inside
    ).eval()
    lengths = [23, 11, 3, 1]
    x = torch.randn(4, 23, 32)
    real = torch.zeros(4, 23, dtype=torch.bool)
    for row, n in enumerate(lengths):
        real[row, 23 - n if left else 0 : None if left else n] = True
    with torch.no_grad():
        padded = layer(x, padding=real)
        for row in range(4):
            alone = layer(x[row][real[row]][None])[0]
            torch.testing.assert_close(padded[row][real[row]], alone, atol=1e-5, rtol=1e-5)


def test_padding_does_not_move_centers():
    first = regard.layer("routing_transformer", dim=16, heads=2, clusters=3, keep=0.5).train()
    second = regard.layer("routing_transformer", dim=16, heads=2, clusters=3, keep=0.5).train()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 12, 16)
    real = torch.arange(12)[None] < 7
    first(x, padding=real)
    second(x[:, :7])
    torch.testing.assert_close(first.centers, second.centers)


def test_a_head_must_route():
    with pytest.raises(errors.ValueRangeError, match="0 to 3"):
        regard.layer("routing_transformer", dim=32, heads=4, local_heads=4)


def test_causal_inside_sees_no_later_token_of_its_cluster():
    """With one cluster of all tokens, nothing leaks, in local heads neither."""
    layer = regard.layer(
        "routing_transformer", dim=16, heads=2, clusters=1, window=4, causal_inside=True
    ).eval()
    x = torch.randn(1, 10, 16)
    other = x.clone()
    other[:, 6:] += 1
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[:, :6], layer(other)[:, :6])
