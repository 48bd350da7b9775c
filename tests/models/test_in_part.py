"""Models reached in part: what calls PyTorch's attention is taken, the rest is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from regard.models import Edit, Null, attach  # noqa: E402
from tests.alone import Alone  # noqa: E402
from tests.architectures import IMAGES, OTHERS, build, other  # noqa: E402

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4}  # fmt: skip
WORDS = {**SMALL, "vocab_size": 64, "max_position_embeddings": 64}
Made = tuple[Any, dict[str, Any]]


def make(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    return model(model.config_class(**options)).eval()


def sam() -> Made:
    eye = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "image_size": 32,
           "num_attention_heads": 4, "patch_size": 8, "mlp_dim": 48, "window_size": 2,
           "global_attn_indexes": [1], "num_pos_feats": 8}  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    mask = {"hidden_size": 16, "mlp_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16}  # fmt: skip
    model = make("SamModel", vision_config=eye, prompt_encoder_config=prompt,
                 mask_decoder_config=mask)  # fmt: skip
    return model, {"pixel_values": torch.randn(1, 3, 32, 32)}


def siglip() -> Made:
    name = "siglip_vision_model"
    return build(name, IMAGES[name]), {"pixel_values": torch.randn(2, 3, 16, 16)}


def long_t5() -> Made:
    model = make("LongT5ForConditionalGeneration", vocab_size=64, d_model=32, d_kv=8, d_ff=48,
                 num_layers=2, num_heads=4, local_radius=3, decoder_start_token_id=0)  # fmt: skip
    ids = torch.randint(5, 60, (2, 12))
    return model, {"input_ids": ids, "decoder_input_ids": ids[:, :5]}


def clap() -> Made:
    sound = {"spec_size": 32, "window_size": 2, "patch_size": 2, "patch_stride": [2, 2],
             "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1],
             "num_attention_heads": [2, 2], "hidden_size": 16, "projection_dim": 16,
             "num_hidden_layers": 2, "mlp_ratio": 1.0, "aff_block_r": 1}  # fmt: skip
    model = make("ClapModel", text_config={**WORDS, "projection_dim": 16}, audio_config=sound,
                 projection_dim=16)  # fmt: skip
    ids = torch.randint(5, 60, (2, 9))
    return model, {"input_ids": ids, "input_features": torch.randn(2, 1, 8, 16)}


def big_bird_pegasus() -> Made:
    model = make("BigBirdPegasusForConditionalGeneration", vocab_size=64, d_model=32,
                 encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
                 decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
                 max_position_embeddings=64, attention_type="original_full")  # fmt: skip
    ids = torch.randint(5, 60, (2, 9))
    return model, {"input_ids": ids, "decoder_input_ids": ids}


def grounding_dino() -> Made:
    eye = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1],
                                  num_heads=[2, 2], window_size=2,
                                  out_features=["stage1", "stage2"])  # fmt: skip
    model = make(
        "GroundingDinoModel", backbone_config=eye, text_config={**WORDS, "model_type": "bert"},
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=5,
        num_feature_levels=2,
    )  # fmt: skip
    return model, {"pixel_values": torch.randn(1, 3, 32, 32),
                   "input_ids": torch.tensor([[101, 5, 6, 1012, 102]]) % 64}  # fmt: skip


def others(name: str) -> Callable[[], Made]:
    return lambda: other(name)


IN_PART = {
    "long_t5": (long_t5, ["LocalSelfAttention"]),
    "clap": (clap, ["ClapAudioSelfAttention"]),
    "big_bird_pegasus": (big_bird_pegasus, ["BigBirdPegasusSelfAttention"]),
    "grounding_dino": (grounding_dino, [
        "GroundingDinoMultiheadAttention", "GroundingDinoBiMultiHeadAttention", "Deformable",
    ]),
}  # fmt: skip
WHOLE = {"sam": sam, "siglip_vision": siglip, **{name: others(name) for name in OTHERS}}


@pytest.mark.parametrize("name", [*IN_PART, *WHOLE])
def test_attention_out_of_reach_is_named(name: str) -> None:
    """What takes a softmax of its own under an attached model is what was named, and no more."""
    made, kinds = IN_PART.get(name) or (WHOLE[name], [])
    model, inputs = made()
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with attach(model, [Null()], check=False) as attached:
            ran = False
            try:
                alone = Alone().watch(model, lambda: model(**inputs))
                ran = True
            except (TypeError, ValueError, RuntimeError, KeyError):
                assert kinds, "only models that are hard to feed may refuse"
    assert any("reached in part" in str(x.message) for x in said) == bool(kinds)
    for kind in kinds:
        assert any(kind in x for x in attached.unreached), attached.unreached
    if not kinds:
        assert attached.unreached == ()
    if ran:
        assert alone <= set(attached.unreached)


def test_a_mixer_of_streams_beside_attention_is_not_called_attention() -> None:
    """DeepSeek-V4's hyper-connections stand at `attn_hc`, and have a softmax over streams."""
    options = {**WORDS, "num_key_value_heads": 1, "head_dim": 8, "n_routed_experts": 4,
               "num_experts_per_tok": 2, "moe_intermediate_size": 16}  # fmt: skip
    model = make("DeepseekV4ForCausalLM", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, [Null()]) as attached:
            assert attached.unreached == ()
            assert "2 of 2 sites reached" in attached.checked


def test_a_config_of_each_layer_is_read() -> None:
    """EmbeddingGemma2's config refuses to say what differs from layer to layer."""
    from tests.tiny_models import tiny_model

    model = tiny_model(transformers.EmbeddingGemma2TextModel)
    with attach(model, [Null()]) as attached:
        assert "2 of 2 sites reached" in attached.checked
        assert all(site.heads and site.kv_heads and site.head_size for site in attached.sites)


FEATURES: dict[str, tuple[str, Callable[[Any, Any], torch.Tensor]]] = {
    "sam": ("vision_encoder.layers.1.attn", lambda m, x: m.vision_encoder(**x)[0]),
    "siglip_vision": ("head.attention", lambda m, x: m(**x).pooler_output),
}


@pytest.mark.parametrize("name", FEATURES)
def test_what_calls_pytorch_is_taken_too(name: str) -> None:
    model, inputs = WHOLE[name]()
    site, features = FEATURES[name]
    with torch.no_grad():
        plain = features(model, inputs)
        with attach(model, [Null()], check=inputs) as attached:
            assert site in [site.module for site in attached.sites]
            torch.testing.assert_close(features(model, inputs), plain, atol=1e-5, rtol=1e-5)
        with attach(model, [Edit("out", lambda o: 100 + 0 * o, where=site)], check=False):
            moved = (features(model, inputs) - plain).abs().max()
            assert moved > 0.1 * plain.abs().max()
        assert torch.equal(features(model, inputs), plain)


class Weighs(nn.Module):
    """A module with a softmax, which is read or not."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, x):
        weights = (x @ x.mT).softmax(-1).to(x.dtype)
        return weights @ x if self.reads else x


@pytest.mark.parametrize("reads", [True, False])
def test_a_softmax_that_nothing_reads_weighs_nothing(reads):
    """Sam2 computes one beside its call, and drops it."""
    model = nn.ModuleDict({"attention": Weighs(reads)})
    found = Alone().watch(model, lambda: model["attention"](torch.randn(3, 4)))
    assert found == ({"attention (Weighs)"} if reads else set())
