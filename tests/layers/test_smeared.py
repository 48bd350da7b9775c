"""Smeared keys against keys mixed by a loop, and at both ends of the share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import regard


def by_hand(layer, x, start=0):
    """One sequence x [n, dim]: softmax over keys that were mixed one by one."""
    heads, d = layer.heads, layer.head_dim
    q = (x @ layer.to_q.weight.T).view(-1, heads, d).transpose(0, 1)
    k = (x @ layer.to_k.weight.T).view(-1, layer.kv_heads, d)
    v = (x @ layer.to_v.weight.T).view(-1, layer.kv_heads, d)
    mixed = torch.zeros_like(k)
    for j in range(len(x)):
        for g in range(layer.kv_heads):
            a = 1 / (1 + torch.exp(-layer.own[g]))
            before = k[j - 1, g] if j else torch.zeros(d)
            mixed[j, g] = a * k[j, g] + (1 - a) * before
    share = heads // layer.kv_heads
    k, v = (y.transpose(0, 1).repeat_interleave(share, 0) for y in (mixed, v))
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return seen.transpose(0, 1).flatten(1) @ layer.to_out.weight.T


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_keys_are_mixed_with_the_one_before(kv_heads):
    layer = regard.layer("smeared_keys", dim=32, heads=4, kv_heads=kv_heads)
    with torch.no_grad():
        layer.own.copy_(torch.linspace(-2, 2, kv_heads))
        x = torch.randn(11, 32)
        torch.testing.assert_close(layer(x[None])[0], by_hand(layer, x), atol=1e-5, rtol=1e-5)


def test_a_large_share_is_plain_attention():
    layer = regard.layer("smeared_keys", dim=32, heads=4, position="rotary")
    plain = regard.layer("mha", dim=32, heads=4, causal=True, position="rotary")
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "own"})
    x = torch.randn(2, 9, 32)
    with torch.no_grad():
        assert not torch.allclose(layer(x), plain(x), atol=1e-3)
        layer.own.fill_(40.0)
        torch.testing.assert_close(layer(x), plain(x))


def test_the_first_token_of_a_document_has_none_before_it():
    layer = regard.layer("smeared_keys", dim=32, heads=4)
    x = torch.randn(1, 10, 32)
    ids = torch.tensor([[0] * 4 + [1] * 6])
    with torch.no_grad():
        packed = layer(x, documents=ids)
        for some in (slice(4), slice(4, None)):
            torch.testing.assert_close(packed[:, some], layer(x[:, some]), atol=1e-5, rtol=1e-5)


def test_one_layer_can_look_behind_an_earlier_copy():
    """By hand: keys are of the token before alone, so a query finds what followed its copy."""
    layer = regard.layer("smeared_keys", dim=8, heads=1)
    with torch.no_grad():
        layer.own.fill_(-40.0)
        for weight in (layer.to_v.weight, layer.to_out.weight):
            weight.copy_(torch.eye(8))
        layer.to_q.weight.copy_(200 * torch.eye(8))
        layer.to_k.weight.copy_(torch.eye(8))
        ids = torch.tensor([4, 0, 1, 2, 3, 0, 1, 2])
        said = layer(F.one_hot(ids, 8).float()[None])[0].argmax(-1)
    assert said[5:7].tolist() == ids[6:].tolist()
    assert said[7] == 3
