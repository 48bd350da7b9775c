"""Any module that attends through PyTorch is itself with a stage that does nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models import Edit, Null, UnsupportedModelError, attach
from regard.models.sdpa import call_of
from tests.models.functional_models import KINDS, ROOM, Gpt, Note, Plain, Twice, state_of, tokens


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
    from regard.run.runner import run

    torch.testing.assert_close(run(call).out, expected)


def test_a_module_out_of_reach_is_named() -> None:
    class OwnAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.mT).softmax(-1) @ x

    with pytest.raises(UnsupportedModelError, match="OwnAttention"):
        attach(nn.Sequential(OwnAttention()))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_gpt_written_by_hand_trains_the_same(seed: int) -> None:
    model, ids = Gpt(), torch.randint(0, 40, (2, 7))
    parameters = list(model.parameters())
    plain = torch.autograd.grad(loss_of(model, ids), parameters, allow_unused=True)
    with attach(model, [Null()]) as attached:
        assert [s.module for s in attached.sites] == ["blocks.0.attn", "blocks.1.attn"]
        found = torch.autograd.grad(loss_of(model, ids), parameters, allow_unused=True)
    for a, b in zip(found, plain, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "multihead", "layer", "transformer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_loses_no_more_than_pytorch(kind: str, dtype: torch.dtype, seed: int) -> None:
    model: nn.Module
    x, more = torch.randn(2, 7, 32), 1
    if kind == "multihead":
        model, more = nn.MultiheadAttention(32, 4, batch_first=True), 3
    elif kind == "layer":
        model = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    elif kind == "transformer":
        model, more = nn.Transformer(32, 4, 1, 1, 48, batch_first=True), 2
    else:
        model = Plain(kind)
    model.eval()

    def run(dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            out = model.to(dtype)(*[x.to(dtype)] * more)
        found: Tensor = (out[0] if isinstance(out, tuple) else out).double()
        return found

    model.to(dtype)  # so that all runs have the same, rounded, weights
    x = x.to(dtype)
    truth, plain = run(torch.float64), run(dtype)
    with attach(model, [Null()]):
        found = run(dtype)
    # Twice what PyTorch itself loses, and one rounding of the largest output.
    room = 2 * (plain - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
    assert float((found - truth).abs().max()) <= float(room)


@pytest.mark.parametrize("how", ["grad", "no grad", "nested"])
def test_an_encoder_layer_is_reached_on_its_fast_path(how: str, seed: int) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True).eval()
    model: nn.Module = nn.TransformerEncoder(layer, 2) if how == "nested" else layer
    padding = torch.arange(7) >= torch.tensor([[5], [7]]) if how == "nested" else None
    x = torch.randn(2, 7, 32)
    real = torch.ones(2, 7).bool() if padding is None else ~padding
    with torch.set_grad_enabled(how == "grad"):
        plain = model(x, src_key_padding_mask=padding)
        with attach(model, [Null()]):
            found = model(x, src_key_padding_mask=padding)
        with attach(model, [Edit("out", lambda o: 0 * o)]):
            assert not torch.allclose(model(x, src_key_padding_mask=padding)[real], plain[real])
        again = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[real], plain[real], atol=1e-5, rtol=1e-5)
    assert torch.equal(again, plain)
    assert torch.backends.mha.get_fastpath_enabled()


class ByFunction(nn.Module):
    """Calls `F.multi_head_attention_forward` itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.MultiheadAttention(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        m = self.kept
        x = x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(
            *(x, x, x, 32, 4, m.in_proj_weight, m.in_proj_bias),
            *(m.bias_k, m.bias_v, False, 0.0, m.out_proj.weight, m.out_proj.bias),
            need_weights=False,
        )
        found: Tensor = out.transpose(0, 1)
        return found


def test_multi_head_attention_forward_is_reached(seed: int) -> None:
    model, x = ByFunction(), torch.randn(2, 7, 32)
    plain = model(x)
    with attach(model, [Null()]):
        torch.testing.assert_close(model(x), plain, atol=ROOM, rtol=ROOM)
    with attach(model, [Edit("out", lambda o: 2 * o)]):
        bias = model.kept.out_proj.bias
        torch.testing.assert_close(model(x) - bias, 2 * (plain - bias), atol=1e-5, rtol=1e-5)


def test_calls_of_one_module_are_counted(seed: int) -> None:
    model, x, note = nn.Sequential(Twice(), Twice()), torch.randn(2, 4, 7, 8), Note()
    plain = model(x)
    with attach(model, [note]):
        torch.testing.assert_close(model(x), plain, atol=ROOM, rtol=ROOM)
        model(x)  # counting begins anew with each forward
    one = [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    assert [(s.module, s.index) for s in note.sites] == 2 * one
    assert len(set(note.sites)) == 4
    assert "call 1" in repr(note.sites[1])


class Maybe(nn.Module):
    """Attends by PyTorch, or by itself."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(x, x, x)
        return (x @ x.mT / 8**0.5).softmax(-1) @ x


def test_a_site_that_is_not_reached_is_named() -> None:
    model, x = nn.Sequential(Maybe(True), Maybe(False)), torch.randn(1, 2, 7, 8)
    plain = model(x)
    with attach(model, [Note()]), pytest.warns(UserWarning, match="^1 ran without"):
        model(x)
    with warnings.catch_warnings(), attach(model[:1], [Note()]):
        warnings.simplefilter("error")
        model(x)
    assert torch.equal(model(x), plain)


@pytest.mark.filterwarnings("ignore:.*ran without a call")
def test_a_model_that_is_nowhere_reached_is_an_error() -> None:
    model, x = nn.Sequential(Maybe(False), nn.Identity()), torch.randn(1, 2, 7, 8)
    before, plain = state_of(model), model(x)
    told = pytest.raises(UnsupportedModelError, match="Sequential, whose forward attends in 0")
    with told, attach(model, [Note()]):
        model(x)
    with pytest.raises(UnsupportedModelError, match="in itself"), attach(model[0], [Note()]):
        model(x)
    assert state_of(model) == before
    assert torch.equal(model(x), plain)


def test_what_attends_by_itself_is_named_first() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1) @ x.mT

    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul((x @ x.mT).softmax(-1), x)

    class OwnAttention(Mixer):
        pass

    with pytest.raises(UnsupportedModelError, match=r"attends in 1 \(OwnAttention\)"):
        attach(nn.Sequential(Router(), OwnAttention()))
    with pytest.raises(UnsupportedModelError, match=r"attends in 0 \(Mixer\)"):
        attach(nn.Sequential(Mixer()))
    with pytest.raises(UnsupportedModelError, match="Linear, which attends nowhere"):
        attach(nn.Linear(2, 2))
