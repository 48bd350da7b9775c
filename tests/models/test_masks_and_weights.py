"""Masks that a model handles as tensors, and weights that it returns: as under eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from regard.models import Edit, Null, UnsupportedModelError, attach  # noqa: E402
from regard.models.attention_interface import NAME  # noqa: E402
from regard.models.masks import Mask  # noqa: E402
from tests.architectures import (  # noqa: E402
    DECODERS,
    ENCODERS,
    IMAGES,
    OTHERS,
    PAIRS,
    build,
    other,
)

IDS = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
REAL = torch.ones(2, 9, dtype=torch.long)
REAL[0, -3:] = 0
PAIR = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
# Models that add to their masks, multiply them, or write into them.
AS_TENSORS: dict[str, dict[str, Any]] = {
    "BigBirdPegasusForConditionalGeneration": {**PAIR, "attention_type": "original_full"},
    "NllbMoeForConditionalGeneration": {
        **PAIR, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2,
        "expert_capacity": 64,
    },
}  # fmt: skip


def eager(model: Any) -> Any:
    """Ask for eager attention, where the model knows another."""
    model.set_attn_implementation("eager")
    return model


@pytest.mark.filterwarnings("ignore:.*uses its mask as a tensor", "ignore:.*reached in part")
@pytest.mark.parametrize("kind", AS_TENSORS)
def test_a_model_that_takes_its_mask_apart_is_itself(kind: str) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = model(model.config_class(**AS_TENSORS[kind])).eval()
    inputs = {"input_ids": IDS, "attention_mask": REAL, "decoder_input_ids": IDS,
              "decoder_attention_mask": REAL}  # fmt: skip
    with torch.no_grad():
        plain = model(**inputs).logits
        with attach(model, [Null()]):
            found = model(**inputs).logits
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*uses its mask as a tensor")
@pytest.mark.parametrize("replaced", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_turns_into_what_would_have_been(replaced: str, padded: bool) -> None:
    """Every operation sees the tensor that the replaced implementation makes."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask

    config = build("llama", DECODERS["llama"]).config
    asked: dict[str, Any] = {
        "inputs_embeds": torch.zeros(2, 9, 32), "past_key_values": None,
        "attention_mask": REAL if padded else torch.ones_like(REAL),
        "and_mask_function": lambda b, h, i, j: j >= 0,  # so that sdpa makes one as well
    }  # fmt: skip
    config._attn_implementation = replaced
    wanted = create_causal_mask(config, **asked)
    model = build("llama", DECODERS["llama"])
    model.set_attn_implementation(replaced)
    with attach(model, [Null()], check=False):
        assert model.config._attn_implementation == NAME
        mask: Any = create_causal_mask(model.config, **asked)
    assert isinstance(mask, Mask)
    assert replaced in ALL_MASK_ATTENTION_FUNCTIONS
    for found in (mask[:], torch.zeros_like(wanted) + mask, mask.clone(), mask[..., :9]):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def compared(model: Any, run: Any) -> None:
    plain = {k: x for k, x in run().items() if "attentions" in k and x}
    with attach(model, [Null()], check=False):
        found = run()
        assert plain.keys() == {k for k, x in found.items() if "attentions" in k and x}
    for key, weights in plain.items():
        assert len(found[key]) == len(weights) > 0
        for ours, theirs in zip(found[key], weights, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*reached in part")
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS, *PAIRS, *IMAGES, *OTHERS])
def test_weights_are_returned_where_eager_returns_them(name: str) -> None:
    inputs: dict[str, Any] = {"input_ids": IDS}
    if name in OTHERS:
        model, inputs = other(name)
    elif name in IMAGES:
        model, inputs = build(name, IMAGES[name]), {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        options = {**DECODERS, **ENCODERS, **PAIRS}[name]
        model = build(name, options, causal=name in DECODERS)
    if name in PAIRS:
        inputs["decoder_input_ids"] = IDS
    if name == "falcon":
        pytest.skip("its eager attention calls nothing that a hook reaches")
    eager(model)
    with torch.no_grad():
        compared(model, lambda: model(**inputs, output_attentions=True))
        pixels = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
        if hasattr(model, "get_image_features"):
            compared(model, lambda: model.get_image_features(**pixels, output_attentions=True))


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_weights_are_returned_where_the_config_asks(name: str) -> None:
    model = eager(build(name, DECODERS[name], causal=True))
    model.config.output_attentions = True
    with torch.no_grad():
        compared(model, lambda: model(IDS))


def test_another_implementation_within_the_with_is_refused() -> None:
    """It would switch the stages off; so would a config that is written to."""
    model = build("llama", DECODERS["llama"], causal=True)
    with attach(model, [Edit("out", lambda o: 0 * o)]):
        silent = model(IDS).logits
        with pytest.raises(UnsupportedModelError, match="would disable them"):
            model.set_attn_implementation("eager")
        assert torch.equal(model(IDS).logits, silent)
        model.config._attn_implementation = "eager"
        with pytest.raises(UnsupportedModelError, match="would disable them"):
            model(IDS)
    assert model.config._attn_implementation == "eager"  # what the user has set stays
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    assert not torch.equal(model(IDS).logits, silent)
