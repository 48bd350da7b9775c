"""Tiny diffusion models of every kind, with an input each: a batch of `b`, 5 tokens of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")

Made = tuple[nn.Module, dict[str, Any]]
TEXT = 5


def _words(b: int, size: int = 16) -> torch.Tensor:
    return torch.randn(b, TEXT, size)


def unet(b: int = 1) -> Made:
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
    return model, {"sample": torch.randn(b, 4, 6, 10), "encoder_hidden_states": _words(b)}


def sd3(b: int = 1) -> Made:
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
        dual_attention_layers=(0,),
    )
    return model, {
        "hidden_states": torch.randn(b, 4, 4, 6),
        "encoder_hidden_states": _words(b),
        "pooled_projections": torch.randn(b, 16),
    }


def flux(b: int = 1) -> Made:
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
        "hidden_states": torch.randn(b, 6, 4),
        "encoder_hidden_states": _words(b),
        "pooled_projections": torch.randn(b, 16),
        "img_ids": torch.tensor([[0.0, y, x] for y in range(2) for x in range(3)]),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def chroma(b: int = 1) -> Made:
    model = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    _, inputs = flux(b)
    del inputs["pooled_projections"]
    return model, {**inputs, "encoder_hidden_states": _words(b, 32)}


def pixart(b: int = 1) -> Made:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    return model, {
        "hidden_states": torch.randn(b, 4, 4, 6),
        "encoder_hidden_states": _words(b),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]).expand(b, -1),
    }


def wan(b: int = 1) -> Made:
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
        "hidden_states": torch.randn(b, 4, 2, 4, 6),
        "encoder_hidden_states": _words(b),
    }


def ltx(b: int = 1) -> Made:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=16,
    )
    return model, {
        "hidden_states": torch.randn(b, 12, 8),
        "encoder_hidden_states": _words(b),
        "encoder_attention_mask": torch.ones(b, TEXT).bool(),
        "num_frames": 2,
        "height": 2,
        "width": 3,
    }


def qwen(b: int = 1) -> Made:
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {
        "hidden_states": torch.randn(b, 6, 16),
        "encoder_hidden_states": _words(b),
        "encoder_hidden_states_mask": torch.ones(b, TEXT, dtype=torch.long),
        "img_shapes": [[(1, 2, 3)]] * b,
    }
    if "txt_seq_lens" in type(model).forward.__code__.co_varnames[:12]:  # older diffusers
        inputs["txt_seq_lens"] = [TEXT] * b
    return model, inputs


def cogvideox(b: int = 1) -> Made:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=6,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TEXT,
    )
    return model, {
        "hidden_states": torch.randn(b, 2, 4, 4, 6),
        "encoder_hidden_states": _words(b),
    }


def cogview4(b: int = 1) -> Made:
    model = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
    )
    size = torch.tensor([[8.0, 12.0]]).expand(b, -1)
    return model, {
        "hidden_states": torch.randn(b, 4, 4, 6),
        "encoder_hidden_states": _words(b),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(b, 2),
    }


def auraflow(b: int = 1) -> Made:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        out_channels=4,
    )
    return model, {
        "hidden_states": torch.randn(b, 4, 4, 6),
        "encoder_hidden_states": _words(b),
    }


def hunyuan(b: int = 1) -> Made:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=False,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        qk_norm="rms_norm",
    )
    return model, {
        "hidden_states": torch.randn(b, 4, 2, 4, 6),
        "encoder_hidden_states": _words(b),
        "encoder_attention_mask": torch.ones(b, TEXT),
        "pooled_projections": torch.randn(b, 8),
    }


def mochi(b: int = 1) -> Made:
    model = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=16,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    return model, {
        "hidden_states": torch.randn(b, 4, 2, 4, 6),
        "encoder_hidden_states": _words(b),
        "encoder_attention_mask": torch.ones(b, TEXT),
    }


def hidream(b: int = 1) -> Made:
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    return model, {
        "hidden_states": torch.randn(b, 4, 4, 4),
        "encoder_hidden_states_t5": _words(b, 32),
        "encoder_hidden_states_llama3": torch.randn(2, b, TEXT, 16),
        "pooled_embeds": torch.randn(b, 64),
    }


# Each with the kinds of its sites.
MAKERS: dict[Callable[..., Made], set[str]] = {
    unet: {"self", "cross"},
    sd3: {"joint", "self"},
    flux: {"joint"},
    chroma: {"joint"},
    pixart: {"self", "cross"},
    wan: {"self", "cross"},
    ltx: {"self", "cross"},
    qwen: {"joint"},
    cogvideox: {"joint"},
    cogview4: {"joint"},
    auraflow: {"joint"},
    hunyuan: {"joint", "self"},
    mochi: {"joint"},
    hidream: {"joint"},
}


def build(make: Callable[..., Made], b: int = 1) -> Made:
    """Make a model whose gates and last layers, which may begin at zero, do something."""
    model, inputs = make(b)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), inputs
