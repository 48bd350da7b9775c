"""Sound as a picture: the spectrogram that a model reads, and which tokens are its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.models.site import Site
from regard.probes.maps import Drawn, Patches
from regard.views.colors import ramp

WIDE, TALL = 960, 160


def spectrogram_of(inputs: Mapping[str, Any]) -> np.ndarray | None:
    """Draw the spectrogram that a model is shown, uint8 [rows, columns, 3]; None where it has none.

    `input_features` [b, bands, frames], as models of the Whisper kind read. Time runs to the right,
    the lowest band is at the bottom, and colors go from the least value to the largest.

    >>> spectrogram_of({"input_features": torch.randn(1, 80, 3000)}).shape
    (160, 750, 3)
    """
    heard = inputs.get("input_features")
    if not isinstance(heard, Tensor) or heard.dim() != 3 or not heard.is_floating_point():
        return None
    x = heard[0].detach().float().cpu()
    by = -(-x.shape[1] // WIDE)
    x = torch.nn.functional.avg_pool1d(x[None], by, ceil_mode=True)[0].flip(0)
    low, high = x.min(), x.max()
    levels = ((x - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8).numpy()
    return ramp(np.repeat(levels, max(1, TALL // len(levels)), 0))


def frames_of(drawn: Mapping[Site, Drawn]) -> dict[Site, Patches]:
    """Find the frames among the tokens of each site that has some: a grid of one row.

    Those are all tokens of the self-attention of what reads sound, and the keys of the
    cross-attention to it.
    """
    heard = {x.n for site, x in drawn.items() if site.kind == "self" and site.modality == "audio"}
    if len(heard) != 1:
        return {}
    (frames,) = heard
    found = {}
    for site, x in drawn.items():
        if site.kind == "self" and site.modality == "audio":
            found[site] = Patches((1, frames), 0, 0)
        elif site.kind == "cross" and x.m == frames:
            found[site] = Patches((1, frames), None, 0)
    return found


__all__ = ["frames_of", "spectrogram_of"]
