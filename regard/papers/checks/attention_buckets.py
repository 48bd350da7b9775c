"""The trained base is the model, each copy is one, and chosen bases fill each other's lows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import need
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.serving.buckets import Buckets, choose_bases, decay

BASE, REACH = 10_000.0, 2000


def tiny_llama(base: float) -> Any:
    """A random rotary decoder; the same weights at any base."""
    transformers = need("transformers", "hf", "has the model")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )).eval()  # fmt: skip
    restart()
    for p in model.parameters():
        p.copy_(torch.randn_like(p) * 0.25)
    return model


def decoded(model: Any, ids: Tensor) -> Any:
    """Tokens and the cache, of greedy decoding."""
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
        eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
    )  # fmt: skip


@check("attention_buckets", beyond="tool use and answers from passages of a trained model")
@torch.no_grad()
def attention_buckets() -> Claims:
    """The trained base is the model, each copy is one, and chosen bases fill each other's lows."""
    restart()
    ids, model = torch.randint(5, 60, (2, 120)), tiny_llama(BASE)
    plain = decoded(model, ids).sequences
    same = []
    for n in (1, 4):
        with Buckets(model, [BASE] * n):
            same.append(torch.equal(decoded(model, ids).sequences, plain))
    with Buckets(model, n=4) as buckets:
        out, bases = decoded(model, ids), buckets.bases
    b, apart, moved = len(ids), 0.0, 0.0
    for j, base in enumerate(bases):
        alone = tiny_llama(base)(out.sequences[:, :-1], use_cache=True).past_key_values
        for ours, theirs in zip(out.past_key_values.layers, alone.layers, strict=True):
            rows = slice(j * b, (j + 1) * b)
            apart = max(apart, gap(ours.keys[rows], theirs.keys))
            apart = max(apart, gap(ours.values[rows], theirs.values))
            moved = max(moved, gap(ours.keys[:b], theirs.keys)) if j else moved
    lows, others = {}, {}
    for d in (64, 128):
        curves = torch.stack([decay(c, d, REACH) for c in choose_bases(BASE, d, 6, REACH)])
        lows[d] = [float(x.min()) for x in (curves[0], curves.amax(0))]
        others[d] = float(curves[1:].amax(0).min())
    yield claim("N=1 at the trained base", "same tokens", same[0]).equals(True, "ordinary decoding")
    yield claim("N identical bases too", "same tokens with 4 copies", same[1]).equals(
        True, "ordinary decoding"
    )
    for d, (one_, several) in lows.items():
        yield claim("with the greedy set", f"lowest of max_j g_j, {d} channels", several).above(
            one_, "that of the single base"
        )
        yield claim(
            "with the greedy set",
            f"the same of the five other bases alone, {d} channels",
            others[d],
        ).above(one_, "that of the single base")
    yield claim("each copy's cache", "difference of keys and values", apart).within(
        1e-4, "a stand-alone run", because=FLOAT32
    )
    yield claim("each copy's cache", "difference of keys between bases", moved).above(
        apart, "rounding", times=100, because="or the copies would all be one"
    )
