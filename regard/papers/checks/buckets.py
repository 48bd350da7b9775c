"""Check of attention buckets: several rotary bases, whose copies are models of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import need
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.policies.buckets import Buckets, choose_bases, decay

BASE, REACH = 10_000.0, 2000


def tiny_llama(base: float) -> Any:
    """A random rotary decoder; the same weights at any base."""
    transformers = need("transformers", "hf", "has the model")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )).eval()  # fmt: skip
    torch.manual_seed(1)
    for p in model.parameters():
        p.copy_(torch.randn_like(p) * 0.25)
    return model


def decoded(model: Any, ids: Tensor) -> Any:
    """Tokens and the cache, of greedy decoding."""
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
        eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
    )  # fmt: skip


@check("attention_buckets")
@torch.no_grad()
def attention_buckets() -> Measured:
    """The trained base is the model, each copy is one, and chosen bases fill each other's lows."""
    torch.manual_seed(0)
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
    lows = {}
    for d in (64, 128):
        curves = torch.stack([decay(c, d, REACH) for c in choose_bases(BASE, d, 6, REACH)])
        lows[d] = [float(x.min()) for x in (curves[0], curves.amax(0))]
    return Measured(
        "one copy at the trained base, and four, decode what the model does, token for token; with "
        "chosen bases the cache of each copy is that of a model made at its base and fed the same "
        "tokens (1e-4), though bases move keys; six chosen bases lift the lowest point of "
        f"max_j g_j over distances 1 to {REACH} above that of the trained base, for heads of 64 "
        "and 128 channels",
        all(same)
        and apart < 1e-4
        and moved > 0.1
        and all(several > one for one, several in lows.values()),
        {
            "caches apart": apart,
            "keys moved by bases": moved,
            **{f"lowest, one base, {d} channels": x[0] for d, x in lows.items()},
            **{f"lowest, six bases, {d} channels": x[1] for d, x in lows.items()},
        },
        left_out="tool use and answers from passages of a trained model",
    )  # fmt: skip
