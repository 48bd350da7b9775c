"""Whether Triton can run here."""

from __future__ import annotations

import importlib.util
import os

import torch


def why_not_here(device: torch.device) -> str:
    """Return why kernels cannot run on a device, or nothing if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'regard[gpu]'"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return f"Triton needs a CUDA device, not {device.type} (TRITON_INTERPRET=1 interprets)"


def interpreting() -> bool:
    """Return whether kernels are interpreted, which is right and slow."""
    return os.environ.get("TRITON_INTERPRET") == "1"
