"""Queries that are expanded meet states as heads meet keys, and states are kept once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import need
from regard.core.support import Causal
from regard.models.projections import HeadWeights
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.policies.expanded_queries import expanded_attention
from regard.verbs import shrink

LAYERS, BEAMS = 3, 4


def torch_heads(width: int, h: int) -> tuple[nn.MultiheadAttention, HeadWeights]:
    """Attention of torch with random weights and biases, and these by head."""
    attention = nn.MultiheadAttention(width, h, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    rows = attention.in_proj_weight.detach().chunk(3)
    q, k, v = (w.T.reshape(width, h, -1).transpose(0, 1) for w in rows)
    b_q, b_k, b_v = (b.reshape(h, -1) for b in attention.in_proj_bias.detach().chunk(3))
    o = attention.out_proj.weight.detach().T.reshape(h, -1, width)
    return attention, HeadWeights(q, k, v, o, b_q, b_k, b_v, attention.out_proj.bias.detach())


def tiny_bart() -> Any:
    """A random encoder and decoder of transformers, biases and all."""
    transformers = need("transformers", "hf", "has the model")
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=LAYERS,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=64,
    )).eval()  # fmt: skip
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    return model


def held(cache: Any) -> int:
    """Bytes of keys and values that a cache of transformers holds."""
    layers = [layer for layer in cache.layers if layer.is_initialized]
    return sum(x.untyped_storage().nbytes() for y in layers for x in (y.keys, y.values))


def decoded(model: Any, ids: Tensor, beams: int) -> tuple[Tensor, int, int, int]:
    """Tokens, and bytes of what is kept across and before, and of the output of the encoder."""
    seen: dict[int, Tensor] = {}

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        states = given["encoder_hidden_states"]
        seen[states.untyped_storage().data_ptr()] = states

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    out = model.generate(
        ids, attention_mask=(ids != 1).long(), max_new_tokens=12, num_beams=beams,
        do_sample=False, eos_token_id=None, return_dict_in_generate=True,
    )  # fmt: skip
    handle.remove()
    cache = out.past_key_values
    states = sum(x.untyped_storage().nbytes() for x in seen.values())
    return (
        out.sequences,
        held(cache.cross_attention_cache),
        held(cache.self_attention_cache),
        states,
    )


@check(
    "el_attention",
    beyond="speed on an accelerator",
)
@torch.no_grad()
def el_attention() -> Claims:
    """Queries that are expanded meet states as heads meet keys, and states are kept once."""
    restart()
    attention, weights = torch_heads(32, 4)
    n, x, other = 24, torch.randn(2, 24, 32), torch.randn(2, 17, 32)
    past = torch.ones(n, n, dtype=torch.bool).triu(1)
    causal = attention(x, x, x, attn_mask=past, need_weights=False)[0]
    steps = [expanded_attention(weights, x[:, t : t + 1], x[:, : t + 1]) for t in range(n)]
    rows = torch.randn(2 * BEAMS, 1, 32)
    each = other.repeat_interleave(BEAMS, 0)
    apart = {
        "self": gap(expanded_attention(weights, x, x, Causal()), causal),
        "step by step": gap(torch.cat(steps, 1), causal),
        "cross": gap(
            expanded_attention(weights, x, other),
            attention(x, other, other, need_weights=False)[0],
        ),
        "cross, beams": gap(
            expanded_attention(weights, rows, other),
            attention(rows, each, each, need_weights=False)[0],
        ),
    }
    model = tiny_bart()
    ids = torch.randint(5, 60, (2, 30))
    ids[1, 22:] = 1  # padding
    same, shares = [], {}
    for beams in (1, BEAMS):
        plain, across, before, _ = decoded(model, ids, beams)
        with shrink(model, "el_attention", check=False):
            ours, kept, own, states = decoded(model, ids, beams)
        same.append(torch.equal(ours, plain))
        shares[beams] = (across / (kept + states), before / own)
    for name, difference in apart.items():
        yield claim("Equals MHA outputs", f"difference, {name}", difference).within(
            1e-5, "torch's MultiheadAttention", because=CATALOGUE, independent=True
        )
    for beams, (across_, before_) in shares.items():
        yield claim("cross cache bytes", f"times smaller across, {beams} beams", across_).equals(
            float(2 * LAYERS * beams), "2 layers beams"
        )
        yield claim("cross cache bytes", f"times smaller before, {beams} beams", before_).equals(
            2.0, "keys and values, or states"
        )
    for beams, ours_ in zip((1, BEAMS), same, strict=True):
        yield claim("greedy and beam outputs", f"same tokens with {beams} beams", ours_).equals(
            True, "the unchanged model"
        )
