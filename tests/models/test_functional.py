"""Any module that attends through PyTorch is itself with a stage that does nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models import Edit, Null, UnsupportedModelError, attach
from regard.models.functional import call_of

ROOM = 2e-6


class Plain(nn.Module):
    """The attention of a notebook: one projection, heads, a causal product."""

    def __init__(self, kind: str = "causal") -> None:
        super().__init__()
        self.n_head, self.kind = 4, kind
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.bias = nn.Parameter(torch.randn(1, 4, 7, 7))

    def forward(self, x: Tensor, fails: bool = False) -> Tensor:
        b, n, c = x.shape
        q, k, v = (y.view(b, n, 4, 8).transpose(1, 2) for y in self.c_attn(x).chunk(3, -1))
        if self.kind == "three axes":
            q, k, v = (y.reshape(b * 4, n, 8) for y in (q, k, v))
        masks: dict[str, Any] = {
            "causal": {"is_causal": True},
            "three axes": {"scale": 0.3},
            "bias": {"attn_mask": self.bias},
            "grouped": {"enable_gqa": True},
            "padded": {
                "attn_mask": torch.arange(n).view(1, 1, 1, n)
                < torch.tensor([5, 7]).view(2, 1, 1, 1)
            },
            "mask": {"attn_mask": torch.ones(n, n).tril().bool()},
        }
        if self.kind == "grouped":
            k, v = k[:, :2], v[:, :2]
        y = F.scaled_dot_product_attention(q, k, v, **masks[self.kind])
        if fails:
            raise KeyError("told to")
        return self.c_proj(y.reshape(b, 4, n, 8).transpose(1, 2).reshape(b, n, c))


KINDS = ("causal", "three axes", "bias", "grouped", "padded", "mask")


def tokens() -> Tensor:
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def state_of(model: nn.Module) -> list[Any]:
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ] + [torch.backends.mha.get_fastpath_enabled()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_module_is_itself(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Plain(kind), Plain(kind))
    x, before = tokens(), None
    plain, before = model(x), state_of(model)
    with attach(model) as attached:
        assert torch.equal(model(x), plain)
        assert [s.module for s in attached.sites] == ["0", "1"]
    with attach(model, [Null()]):
        torch.testing.assert_close(model(x), plain, atol=ROOM, rtol=ROOM)
    with attach(model, [Edit("out", lambda o: 0 * o, where={"layers": 1})]):
        assert not torch.allclose(model(x), plain)
    assert torch.equal(model(x), plain)
    assert state_of(model) == before


def test_a_learned_bias_gets_its_gradient() -> None:
    torch.manual_seed(0)
    model = Plain("bias")
    (plain,) = torch.autograd.grad(model(tokens()).square().sum(), [model.bias])
    with attach(model, [Null()]):
        (found,) = torch.autograd.grad(model(tokens()).square().sum(), [model.bias])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    assert float(plain.abs().max()) > 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("masked", ["none", "padding", "causal", "both"])
def test_multihead_attention_is_itself(first: bool, weights: bool, masked: str) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(32, 4, batch_first=first)
    x = tokens() if first else tokens().transpose(0, 1)
    masks: dict[str, Any] = {}
    if masked in ("padding", "both"):
        masks["key_padding_mask"] = torch.arange(7) >= torch.tensor([[5], [7]])
    if masked in ("causal", "both"):
        masks["attn_mask"] = torch.ones(7, 7).triu(1).bool()
    plain = model(x, x, x, need_weights=weights, **masks)
    with attach(model, [Null()]):
        found = model(x, x, x, need_weights=weights, **masks)
    with attach(model, [Edit("v", lambda v: 2 * v)]):
        assert not torch.allclose(model(x, x, x, need_weights=weights, **masks)[0], plain[0])
    torch.testing.assert_close(found[0], plain[0], atol=ROOM, rtol=ROOM)
    assert (found[1] is None) == (plain[1] is None) == (not weights)
    if weights:
        torch.testing.assert_close(found[1], plain[1], atol=ROOM, rtol=ROOM)


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_is_itself(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 2, 2, 48, dropout=0.0, batch_first=True).train(training)
    x, y = tokens(), tokens()[:, :5]
    padding = torch.arange(7) >= torch.tensor([[5], [7]])
    told = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5),
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
        "tgt_is_causal": True,
    }
    with torch.no_grad():
        plain, before = model(x, y, **told), state_of(model)
        with attach(model, [Null()]) as attached:
            assert {s.kind for s in attached.sites} == {"self", "cross"}
            torch.testing.assert_close(model(x, y, **told), plain, atol=1e-5, rtol=1e-5)
        with attach(model, [Edit("out", lambda o: 0 * o, where="cross")]):
            assert not torch.allclose(model(x, y, **told), plain)
    assert state_of(model) == before


def test_an_exception_leaves_nothing_behind() -> None:
    model = Plain()
    before, plain = state_of(model), model(tokens())
    with pytest.raises(KeyError), attach(model, [Edit("out", lambda o: 0 * o)]):
        model(tokens(), fails=True)
    assert state_of(model) == before
    assert torch.equal(model(tokens()), plain)
    assert torch.overrides._get_current_function_mode() is None


def test_attachments_stack() -> None:
    model = Plain()
    plain = model(tokens())
    with (
        attach(model, [Edit("out", lambda o: 4 * o)]),
        attach(model, [Edit("out", lambda o: o / 4)]),
    ):
        torch.testing.assert_close(model(tokens()), plain, atol=ROOM, rtol=ROOM)


def test_causal_begins_at_the_first_key() -> None:
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    call, _ = call_of(None, q, k, k, is_causal=True)
    expected = F.scaled_dot_product_attention(q, k, k, is_causal=True)
    from regard.models.engine import attended

    torch.testing.assert_close(attended(call), expected)


def test_a_module_out_of_reach_is_named() -> None:
    class OwnAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.mT).softmax(-1) @ x

    with pytest.raises(UnsupportedModelError, match="OwnAttention"):
        attach(nn.Sequential(OwnAttention()))
