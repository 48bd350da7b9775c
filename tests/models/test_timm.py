"""Vision models of timm are themselves with a stage that does nothing."""

from __future__ import annotations

import pytest
import torch

try:
    import timm
except (ImportError, RuntimeError) as trouble:  # timm needs torchvision, of torch's own build
    pytest.skip(f"timm does not import: {trouble}", allow_module_level=True)

from regard.models import Edit, Null, UnsupportedModelError, attach

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
MODELS = {
    "vit_tiny_patch16_224": SMALL,
    "vit_base_patch16_clip_224": SMALL,
    "vit_small_patch14_dinov2": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "vit_relpos_small_patch16_224": SMALL,
    "deit_tiny_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "cait_xxs24_224": {**SMALL, "depth": 1},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 1, "embed_dim": 32},
    "flexivit_small": SMALL,
    "vit_medium_patch16_gap_240": SMALL,
    "vit_pe_core_tiny_patch16_384": SMALL,
    "samvit_base_patch16": {**SMALL, "global_attn_indexes": (1,), "window_size": 2},
    "pvt_v2_b0": {},
}


@pytest.mark.filterwarnings("error:.*ran without a call")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_vision_model_is_itself(name: str, fused: bool, seed: int) -> None:
    try:
        model = timm.create_model(name, pretrained=False, num_classes=5, **MODELS[name]).eval()
    except (RuntimeError, TypeError) as trouble:
        pytest.skip(f"this timm makes no small {name}: {trouble}")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    size = MODELS[name].get("img_size", 224)
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        plain = model(image)
        with attach(model, [Null()]):
            torch.testing.assert_close(model(image), plain, atol=2e-5, rtol=2e-5)
        with attach(model, [Edit("out", lambda o: 3 * o)]):
            assert not torch.equal(model(image), plain)
        assert torch.equal(model(image), plain)
    assert all(m.fused_attn is fused for m in model.modules() if hasattr(m, "fused_attn"))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "pvt_v2_b0"])
def test_the_grid_of_a_vision_transformer_is_told(name: str) -> None:
    how = {**MODELS[name], "img_size": (32, 48)} if MODELS[name] else {}
    model = timm.create_model(name, pretrained=False, **how).eval()
    with attach(model) as attached:
        grids = {s.grid for s in attached.sites}
    assert grids == ({(4, 6)} if how else {None})


def test_a_vision_model_with_its_own_attention_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="MultiScaleAttention"):
        attach(timm.create_model("mvitv2_tiny", pretrained=False))
