"""Read the attention modules of a trained model as plain `Attention` layers.

Modules are known by their parts (`q_proj` ... `o_proj`, or `query`, `key`, `value`), as Llama,
Mistral, Qwen, Gemma, ViT, CLIP and BERT name them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import CapabilityError, fail
from regard.core.rotary import Rotation, SlowedByWavelength, Yarn
from regard.core.score import Dot, SoftCap
from regard.core.support import Window
from regard.layers.attention import Attention
from regard.layers.positions import Position, Rotary

PARTS = (("q_proj", "k_proj", "v_proj", "o_proj"), ("query", "key", "value", None))


def attention_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules that have the four (or three) maps of attention, by path."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if any(
            all(isinstance(getattr(module, part, None), nn.Linear) for part in parts if part)
            for parts in PARTS
        )
    ]
    if not found:
        fail(
            CapabilityError, "model", type(model).__name__,
            "attention modules with q_proj, k_proj, v_proj and o_proj, or query, key and value",
            "swap works on models shaped as Llama, BERT or ViT; build others of regard.layers",
        )  # fmt: skip
    return found


def plain_layer(module: nn.Module, config: Any, dtype: torch.dtype) -> Attention:
    """Build the plain layer that does what an attention module of transformers does."""
    parts = next(p for p in PARTS if isinstance(getattr(module, p[0], None), nn.Linear))
    q, k, v = (getattr(module, part) for part in parts[:3] if part)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or hasattr(module, "sinks"):
        what = "sinks" if hasattr(module, "sinks") else "no number of heads in its config"
        fail(CapabilityError, "model", what, "attention without", "this model cannot be swapped")
    head_dim = q.out_features // heads
    causal = bool(getattr(module, "is_causal", False))
    # If layers differ each has its window; else the config has one for all.
    of_all = None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", 0)
    window = getattr(module, "sliding_window", of_all)
    cap = getattr(module, "attn_logit_softcapping", None)
    score = Dot(float(getattr(module, "scaling", head_dim**-0.5)))
    layer = Attention(
        q.in_features,
        heads,
        kv_heads=k.out_features // head_dim,
        head_dim=head_dim,
        causal=causal,
        position=_position(module, config, head_dim) if causal else None,
        support=Window(window) if window else None,
        score=score if cap is None else score >> SoftCap(cap),
        bias=q.bias is not None,
    )
    layer.to_q, layer.to_k, layer.to_v = q, k, v
    out: Any = nn.Identity() if parts[3] is None else getattr(module, parts[3])
    layer.to_out = out
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    if norms[0] is not None and norms[1] is not None:
        layer.norm_q, layer.norm_k, layer._normed = norms[0], norms[1], True
    return layer.to(dtype)


def _position(module: nn.Module, config: Any, head_dim: int) -> Position:
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return Position()
    if "rope_type" not in rope:  # one for each type of layer, as Gemma 3 has
        rope = rope.get(getattr(module, "layer_type", "full_attention")) or {}
    kind, base = rope.get("rope_type", "default"), float(rope.get("rope_theta", 10_000.0))
    factor = float(rope.get("factor", 1.0))
    original = int(rope.get("original_max_position_embeddings", 0) or 0)
    rotations: dict[str, Callable[[], Rotation]] = {
        "default": lambda: Rotation(base),
        "linear": lambda: Rotation(base, factor),
        "llama3": lambda: SlowedByWavelength(
            base, factor, original=original,
            low=float(rope["low_freq_factor"]), high=float(rope["high_freq_factor"]),
        ),
        "yarn": lambda: Yarn(base, factor, original=original),
    }  # fmt: skip
    if kind not in rotations:
        fail(
            CapabilityError, "model", f"rope_type {kind!r}", f"one of {sorted(rotations)}",
            "this model's positions cannot be converted",
        )  # fmt: skip
    part = float(rope.get("partial_rotary_factor", 1.0))
    return Rotary(rotations[kind](), channels=int(head_dim * part))


def key_padding(mask: Any, n: int, causal: bool) -> Tensor | None:
    """Read which of the last n keys are real, [b, n], from a mask [b, 1, n, m] of transformers.

    The mask must hold padding only, and for a causal layer the past or a window of it.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        fail(
            CapabilityError, "attention_mask", type(mask).__name__, "a tensor [b, 1, n, m] or None",
            'load the model with attn_implementation="sdpa" before swapping',
        )  # fmt: skip
    allowed = mask if mask.dtype == torch.bool else mask >= 0
    allowed = allowed[:, 0].expand(-1, n, -1)
    if causal:  # a real token may attend to itself, and to nothing later
        own = allowed[..., -n:]
        real = own.diagonal(dim1=1, dim2=2) & ~own.triu(1).any(-1)
    else:
        real = allowed.any(1)
    return None if bool(real.all()) else real
