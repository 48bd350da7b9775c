"""A span of copies shares without loss, and keys of the span are not kept."""

from __future__ import annotations

import torch

from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.registry import policy
from regard.verbs import shrink


@check(
    "shared_attention_weights",
    left_out={
        "gradient to W_q,W_k": (
            "the policy is for inference: weights are made again, and nothing is trained through it"
        ),
        "sharing late layers": "no model is trained here",
    },
    beyond="score FLOPs: weights are computed again rather than kept",
)
def shared_weights() -> Claims:
    """A span of copies shares without loss, and keys of the span are not kept."""
    made = llama(layers=4)
    ids = torch.randint(3, 64, (1, 50))
    with torch.no_grad():
        plain = made(ids).logits

        def cost(**settings: object) -> tuple[float, float]:
            keep = settings.pop("keep", 0.5)
            with shrink(made, policy("shared_weights", **settings), keep=keep, check=False) as s:
                return gap(made(ids).logits, plain), s.report().bytes / s.report().full_bytes

        empty = cost(keep=1.0)[0]
        late, late_share = cost(first=2, last=3)
        # Layers 2 and 3 become copies that leave their input alone but for attention's output 0.
        for layer in made.model.layers[1:]:
            layer.self_attn.load_state_dict(made.model.layers[1].self_attn.state_dict())
            layer.input_layernorm.load_state_dict(made.model.layers[1].input_layernorm.state_dict())
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        plain = made(ids).logits
        for layer in made.model.layers[2:]:
            layer.self_attn.o_proj.weight.normal_(std=0.2)
        made.model.layers[2].self_attn.o_proj.weight.zero_()
        plain = made(ids).logits
        copies = cost(first=2, last=3)[0]
    yield claim("Empty span equals", "difference of logits", empty).within(
        1e-4, "the base model", because=FLOAT32
    )
    yield claim("duplicated-weight toy", "difference of logits", copies).within(
        1e-4, "the model", because="float32 of four layers: zero but for rounding"
    )
    yield claim("duplicated-weight toy", "difference of a random model's late span", late).above(
        copies, "that of copies", times=10, because="or sharing would be nothing"
    )
    yield claim("key-cache bytes", "bytes of full, two of four layers", late_share).within(
        1e-3, "1 - 2/8: keys alone", value=0.75, because="positions beside keys"
    )
