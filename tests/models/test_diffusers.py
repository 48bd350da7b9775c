"""A diffusion model with a stage that does nothing is the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

from regard.models import Edit, Null, Stage, attach  # noqa: E402
from regard.models.diffusers import timestep  # noqa: E402

Made = tuple[nn.Module, dict[str, Any]]
TIME = torch.tensor([7])


def unet() -> Made:
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    sample, words = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    return model, {"sample": sample, "encoder_hidden_states": words}


def sd3() -> Made:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
    }


def flux() -> Made:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return model, {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def pixart() -> Made:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }


def wan() -> Made:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return model, {
        "hidden_states": torch.randn(1, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }


MAKERS = {
    unet: {"self", "cross"},
    sd3: {"joint"},
    flux: {"joint", "self"},
    pixart: {"self", "cross"},
    wan: {"self", "cross"},
}


class Witness(Stage):
    """Notes which sites are reached, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Any] = []
        self.times: list[Any] = []

    def before(self, call: Any) -> Any:
        self.sites.append(call.site)
        self.times.append(timestep())
        return call


def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(timestep=TIME, return_dict=False, **inputs)[0]
    return found


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_a_diffusion_model_is_itself(make: Callable[[], Made]) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    for parameter in model.parameters():  # gates and last layers may begin at zero
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    plain = run(model, inputs)
    processors = [getattr(m, "processor", None) for m in model.modules()]
    with attach(model) as attached:
        assert torch.equal(run(model, inputs), plain)
        assert attached.hook == "diffusers"
        assert {s.kind for s in attached.sites} == MAKERS[make]
    with attach(model, [Null()]):
        torch.testing.assert_close(run(model, inputs), plain, atol=1e-5, rtol=1e-5)
    witness = Witness()
    with attach(model, [witness, Edit("out", lambda o: 0 * o)]) as attached:
        assert not torch.allclose(run(model, inputs), plain)
        assert set(witness.sites) == set(attached.sites)
        assert all(t is TIME for t in witness.times)
    with pytest.raises(TypeError), attach(model, [Null()]):
        model(nonsense=1)
    assert torch.equal(run(model, inputs), plain)
    after = [getattr(m, "processor", None) for m in model.modules()]
    assert all(a is b for a, b in zip(processors, after, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert timestep() is None


def test_the_order_of_tokens_is_told() -> None:
    for make, order in ((sd3, "image-text"), (flux, "text-image")):
        with attach(make()[0]) as attached:
            assert {s.modality for s in attached.sites if s.kind == "joint"} == {order}
