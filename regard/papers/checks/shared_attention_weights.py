"""A span of copies shares without loss, and keys of the span are not kept."""

from __future__ import annotations

import torch

from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.shipped_model import loss_of, trained
from regard.papers.shared.small_llama import llama
from regard.policies.registry import policy
from regard.verbs import shrink


@check(
    "shared_attention_weights",
    beyond="fine-tuning that recovers what early spans lose, and models of 7B",
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
    learner = llama(layers=4).train()
    with shrink(learner, policy("shared_weights", first=2, last=3), keep=0.5, check=False):
        learner(ids, labels=ids).loss.backward()
    felt = {
        (layer, name): getattr(one.self_attn, name).weight.grad is not None
        for layer, one in enumerate(learner.model.layers)
        for name in ("q_proj", "k_proj", "v_proj")
    }
    none = sum(felt[layer, name] for layer in (2, 3) for name in ("q_proj", "k_proj"))
    rest = sum(felt.values()) - none

    shipped, texts = trained()
    rises = {}
    full = loss_of(shipped, texts)
    for first in (1, 2, 3):
        with shrink(shipped, policy("shared_weights", first=first, last=first), keep=0.5,
                    check=False):  # fmt: skip
            rises[first] = loss_of(shipped, texts) - full
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
    yield claim("gradient to W_q,W_k", "weights of queries and keys of the span that have one",
                none).equals(0, "none of 4")  # fmt: skip
    yield claim("gradient to W_q,W_k", "other weights of queries, keys and values that have one",
                rest).equals(8, "all")  # fmt: skip
    yield claim(
        "sharing late layers", "rise of the loss, the last of four layers shares", rises[3]
    ).below(rises[1], "the second shares, the model that ships")
    yield claim(
        "sharing late layers", "rise of the loss, the third of four layers shares", rises[2]
    ).below(rises[1], "the second shares, the model that ships")
