"""Small diffusion transformers, and calls on grids."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import need
from regard.models.forward import Forward
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.budget import Budget


def on_grid(grid: tuple[int, ...], text: int = 0, h: int = 2) -> Call:
    """Random joint attention over a grid and text behind it."""
    site = Site(0, "joint", "attn", h, h, 16, modality="image-text")
    q, k, v = torch.randn(3, 1, h, prod(grid) + text, 16)
    return Call.of(q, k, v, site=site, forward=Forward(0, grid=grid))


def chosen(made: Any, call: Call, keep: Any = 0.25) -> tuple[Call, Step]:
    """What a policy makes of a call by itself."""
    made.begin(nn.Linear(1, 1), Sites([call.site]), Budget.of(keep))
    step = Step(call, call.m, torch.tensor([call.m]))
    return made.select(step), step


def tiny_wan(frames: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """A random video transformer, and one input."""
    diffusers = need("diffusers", "diffusers", "has the model")
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model, {
        "hidden_states": torch.randn(1, 4, frames, 8, 12),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }


def wan_out(model: Any, inputs: dict[str, Tensor], time: int = 9) -> Tensor:
    """One forward."""
    with torch.no_grad():
        found: Tensor = model(**inputs, timestep=torch.tensor([time]), return_dict=False)[0]
    return found
