"""Hidden states in place of keys and values: nothing is lost, and it is said what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError, ShapeError
from regard.core.support import Causal
from regard.models import Null
from regard.models.attach import attach
from regard.models.projections import HeadWeights
from regard.policies import policy
from regard.policies.expanded_queries import States, expanded_attention
from regard.policies.shrinking import Shrinking
from tests.architectures import DECODERS, PAIRS, build
from tests.policies import test_laws as laws

NAME = "el_attention"
PAIRED = ["bart", "mbart", "marian", "pegasus"]
IDS, REAL = laws.IDS[:, :40], laws.REAL[:, :40]


def made(name: str) -> Any:
    torch.manual_seed(1)
    model = build(name, {**DECODERS, **PAIRS}[name], causal=True)
    with torch.no_grad():  # biases as well, and no near ties
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.fixture(scope="module", params=["gpt2", "opt", "biogpt"])
def decoder(request: Any) -> Any:
    return made(request.param)


@pytest.fixture(scope="module", params=PAIRED)
def pair(request: Any) -> Any:
    return made(request.param)


def heads_of(attention: nn.MultiheadAttention) -> HeadWeights:
    h, width = attention.num_heads, attention.embed_dim
    parts = attention.in_proj_weight.detach().chunk(3)
    q, k, v = (w.T.reshape(width, h, -1).transpose(0, 1) for w in parts)
    o = attention.out_proj.weight.detach().T.reshape(h, -1, width)
    b_q, b_k, b_v = (b.reshape(h, -1) for b in attention.in_proj_bias.detach().chunk(3))
    return HeadWeights(q, k, v, o, b_q, b_k, b_v, attention.out_proj.bias.detach())


@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_it_is_the_attention_of_torch(
    heads: int, n: int, m: int, beams: int, causal: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    attention = nn.MultiheadAttention(4 * heads, heads, batch_first=True).double()
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    x = torch.randn(2 * beams, n, 4 * heads).double()
    weights, hidden = heads_of(attention), torch.randn(2, m, 4 * heads).double()
    if causal:
        past = torch.ones(n, n, dtype=torch.bool).triu(1)
        want = attention(x, x, x, attn_mask=past, need_weights=False)[0]
        torch.testing.assert_close(expanded_attention(weights, x, x, Causal()), want)
        for t in range(n):
            one = expanded_attention(weights, x[:, t : t + 1], x[:, : t + 1])
            torch.testing.assert_close(one, want[:, t : t + 1])
        return
    each = hidden.repeat_interleave(beams, 0)
    want = attention(x, each, each, need_weights=False)[0]
    torch.testing.assert_close(expanded_attention(weights, x, hidden), want)


@pytest.mark.parametrize("way", laws.WAYS)
def test_tokens_are_the_same(way: str, decoder: Any) -> None:
    laws.test_at_full_budget_tokens_are_the_same(NAME, way, decoder)


@pytest.mark.parametrize(
    "law",
    [
        laws.test_turns_go_on_from_what_is_kept, laws.test_a_stage_beside_it_changes_nothing,
        laws.test_detaching_leaves_no_trace, laws.test_bytes_told_are_bytes_held,
    ],
    ids=lambda law: law.__name__.removeprefix("test_"),
)  # fmt: skip
def test_laws_of_policies(law: Any, decoder: Any) -> None:
    law(NAME, decoder)


def test_a_row_is_what_it_is_alone(decoder: Any) -> None:
    with regard.shrink(decoder, NAME, keep=0.3, check=False):
        both = laws.decode(decoder)
        alone = laws.decode(decoder, laws.IDS[:1, laws.PAD :], None)
    assert torch.equal(both[0, laws.PAD :], alone[0])


def test_guessed_tokens_are_the_same(decoder: Any) -> None:
    laws.test_guessed_tokens_are_the_same_or_it_is_said(NAME, "lookup", decoder)


def test_a_decoder_keeps_half(decoder: Any) -> None:
    with regard.shrink(decoder, NAME, check=False) as shrunk, torch.no_grad():
        cache = decoder(IDS).past_key_values
        assert all(isinstance(layer.memory, States) for layer in cache.layers)
        report = shrunk.report()
        decoder(IDS[:, :3], past_key_values=cache)
        assert (shrunk.report(IDS).kl or 0.0) < 1e-6
        later = shrunk.report()
    assert 2 * report.bytes == report.full_bytes
    assert report.flops == report.dense_flops  # a prompt is read as ever
    assert later.flops > later.dense_flops  # else a pair costs D channels


@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"num_beams": 3,
     "use_cache": False}],
    ids=["greedy", "beams", "sequences", "no cache"],
)  # fmt: skip
def test_pairs_say_the_same(how: dict[str, Any], pair: Any) -> None:
    real = REAL.flip(1)
    plain = laws.decode(pair, IDS, real, **how)
    expand = pair._expand_inputs_for_generation
    with regard.shrink(pair, NAME) as shrunk:
        assert torch.equal(laws.decode(pair, IDS, real, **how), plain)
        assert str(shrunk.report())
    assert torch.equal(laws.decode(pair, IDS, real, **how), plain)
    assert pair._expand_inputs_for_generation == expand


def test_a_stage_beside_it_sees_all_of_a_pair(pair: Any) -> None:
    how = {"num_beams": 3}
    plain = laws.decode(pair, IDS, REAL.flip(1), **how)
    with attach(pair, [Shrinking([policy(NAME)]), Null()], check=False):
        assert torch.equal(laws.decode(pair, IDS, REAL.flip(1), **how), plain)


@torch.no_grad()
def test_nothing_is_kept_across(pair: Any) -> None:
    """The cross cache is the output of the encoder, once, for all layers and beams."""
    seen: list[Tensor] = []
    inside = pair.get_decoder()
    handle = inside.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    try:
        with regard.shrink(pair, NAME, check=False):
            out = pair.generate(
                IDS, max_new_tokens=6, num_beams=3, eos_token_id=None, do_sample=False,
                return_dict_in_generate=True,
            )  # fmt: skip
    finally:
        handle.remove()
    assert not any(x.is_initialized for x in out.past_key_values.cross_attention_cache.layers)
    assert {x.data_ptr() for x in seen} == {seen[0].data_ptr()}
    assert seen[0].shape[0] == 2
    for layer in out.past_key_values.self_attention_cache.layers:
        assert layer.values.numel() == 0
        assert layer.keys.shape[1] == 1


@torch.no_grad()
def test_weights_of_pairs_are_shown(pair: Any) -> None:
    given = {"decoder_input_ids": IDS[:, :1], "output_attentions": True, "use_cache": True}
    pair.set_attn_implementation("eager")
    plain = pair(IDS, **given).cross_attentions
    with regard.shrink(pair, NAME, check=False):
        ours = pair(IDS, **given).cross_attentions
    pair.set_attn_implementation("sdpa")
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_bf16_is_near(decoder: Any) -> None:
    plain = decoder(IDS).logits
    half = made(decoder.config.model_type).bfloat16()
    off = (half(IDS).logits.float() - plain).abs().mean()
    with regard.shrink(half, NAME, check=False):
        cache = half(IDS[:, :20]).past_key_values
        ours = half(IDS[:, 20:], past_key_values=cache).logits.float()
    assert (ours - plain[:, 20:]).abs().mean() < 2 * off


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(CapabilityError, match="RoPE"):
        regard.shrink(build("llama", DECODERS["llama"], causal=True), NAME)
    with pytest.raises(CapabilityError, match="plain, as in gpt2, opt"):
        regard.shrink(build("t5", PAIRS["t5"]), NAME)
    crossing = build("gpt2", {**DECODERS["gpt2"], "add_cross_attention": True}, causal=True)
    with pytest.raises(CapabilityError, match="plain, as in"):
        regard.shrink(crossing, NAME)
    for other, said in (("snapkv", "its own attention"), ("quantized", "its own stores")):
        with pytest.raises(CapabilityError, match=said):
            regard.shrink(made("gpt2"), [NAME, other])
    q, k, v = torch.randn(3, 2, 8, 4)
    weights = HeadWeights(q, k, v, torch.randn(2, 4, 8))
    with pytest.raises(ShapeError, match="hidden"):
        expanded_attention(weights, torch.randn(3, 1, 8), torch.randn(2, 5, 8))
