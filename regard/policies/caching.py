"""Whether the cache of a model can hold our memories."""

from __future__ import annotations

import inspect
from typing import Any

from regard.models.site import Sites
from regard.run.executor import Answer, No, Yes


def can_cache(model: Any, sites: Sites) -> Answer:
    """Return whether the cache of a model can hold our memories, or why not."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "register_forward_pre_hook"):
        return No("which has no known cache")
    if getattr(config, "is_encoder_decoder", False):
        return No("which has an encoder: only decoders are supported")
    try:
        named = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return No("whose forward cannot be read")
    if "past_key_values" not in named and "kwargs" not in named:
        return No("whose forward takes no cache")
    if "transformers" not in type(model).__module__ and not hasattr(config, "num_hidden_layers"):
        return No("which is not a transformers model")
    other = next((s for s in sites if s.kind != "self" or s.causal is False), None)
    if other is not None:
        return No(f"which has attention other than causal self-attention at {other.module}")
    layers = [s.layer for s in sites]
    if layers != list(range(len(layers))):
        return No(f"whose attention layers are {layers}: other layers keep states")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "num_kv_shared_layers", 0):
        return No("whose layers share keys by design")
    return Yes()


def causal_only(sites: Sites) -> Answer:
    """Return whether all sites are causal self-attention, or why not."""
    other = next((s for s in sites if s.kind != "self" or s.causal is False), None)
    return Yes() if other is None else No(f"which is not causal at {other.module}")
