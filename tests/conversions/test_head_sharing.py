"""Heads that share weights: stored once, made as before, and refused where they cannot be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from regard.conversions.head_sharing import (
    SharedHeadLinear,
    apart,
    chosen_matches,
    post_share,
    share_heads,
)
from regard.core.errors import RegardError
from tests.architectures import DECODERS, build

IDS = torch.randint(5, 60, (2, 20), generator=torch.Generator().manual_seed(0))


def model(name: str = "llama") -> Any:
    return build(name, {**DECODERS[name], "num_hidden_layers": 4}, causal=True)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi", "opt"])
def test_a_shared_model_is_one_whose_weights_were_copied(name: str) -> None:
    ours, copied = model(name), model(name)
    copied.load_state_dict(ours.state_dict())
    pairs = chosen_matches(ours, 0.3)
    lenders = {(x.source_layer, x.source_head) for x in pairs}
    assert pairs
    assert not lenders & {(x.layer, x.head) for x in pairs}
    share_heads(ours, 0.3)
    homes = copied.model.decoder.layers if name == "opt" else copied.model.layers
    g = 2 if name in ("llama", "qwen2") else 4
    with torch.no_grad():
        for x in pairs:
            for part in ("q_proj", "k_proj", "v_proj"):
                a, b = (getattr(homes[y].self_attn, part) for y in (x.layer, x.source_layer))
                for own, other in ((a.weight, b.weight), (a.bias, b.bias)):
                    if own is not None:
                        rows = own.unflatten(0, (g, -1))
                        rows[x.head] = other.unflatten(0, (g, -1))[x.source_head]
        torch.testing.assert_close(ours(IDS).logits, copied(IDS).logits)
    assert sum(isinstance(m, SharedHeadLinear) for m in ours.modules()) == 3 * len(
        {x.layer for x in pairs}
    )
    again = ours.generate(IDS, max_new_tokens=4, do_sample=False, num_beams=2)
    assert torch.equal(again, copied.generate(IDS, max_new_tokens=4, do_sample=False, num_beams=2))


def test_training_after_sharing_moves_both_heads() -> None:
    made = model()
    (one,) = share_heads(made, 1 / 8)
    made(IDS, labels=IDS).loss.backward()
    lender = made.model.layers[one.source_layer].self_attn.q_proj
    assert lender.weight.grad is not None
    assert all(p.grad is not None for p in made.model.layers[one.layer].parameters())
    pairs = chosen_matches(model(), 0.3)
    assert float(apart(model(), pairs)) > 0
    heard: list[int] = []
    post_share(model(), 0.3, [IDS], steps=3, progress=lambda step, _: heard.append(step))
    assert heard == [1, 2, 3]


def test_what_cannot_be_shared_is_told() -> None:
    with pytest.raises(RegardError, match="without layers of its own"):
        share_heads(model("gpt2"), 0.3)
    with pytest.raises(RegardError, match="ratio"):
        share_heads(model(), 1.0)
