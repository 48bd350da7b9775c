"""A small random Llama of transformers, and a prompt at one of its sites."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.site import Site
from regard.papers.seeding import restart
from regard.policies.base import Step


def llama(layers: int = 4, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> torch.nn.Module:
    """A random Llama of small size, with attention that is sharper than at random."""
    from regard.core.errors import need

    transformers = need("transformers", "hf", "has the model")
    restart(f"llama {seed}")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=4096,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made: torch.nn.Module = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.q_proj.weight *= 10
    return made


def step_of(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Step:
    """A prompt at one site."""
    n = k.shape[2]
    return Step(Call.of(q, k, v, Rule(Causal()), site=site), n, torch.full((q.shape[0],), n))
