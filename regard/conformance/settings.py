"""Settings that attention takes, each with a value that must change something."""

from __future__ import annotations

from typing import Any

from torch import nn

from regard.core.errors import RegardError
from regard.core.score import Dot
from regard.core.support import Window
from regard.core.weigh import Sigmoid
from regard.layers.base import Layer
from regard.layers.registry import settings_of

SETTINGS: dict[str, dict[str, Any]] = {
    "kv_heads": {"kv_heads": 1},
    "head_dim": {"head_dim": 6},
    "value_dim": {"value_dim": 5},
    "bias": {"bias": True},
    "out_bias": {"out_bias": True},
    "qk_norm": {"qk_norm": nn.LayerNorm},
    "rotary": {"position": "rotary"},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5"},
    "dropout": {"dropout": 0.6},
    "support": {"support": Window(2)},
    "score": {"score": Dot(0.01)},
    "weigh": {"weigh": Sigmoid(0.5)},
}


def takes(kind: type[Layer], setting: str) -> bool:
    """Return whether a kind of layer has the arguments of a setting, its own or a part's."""
    if set(SETTINGS[setting]) <= set(settings_of(kind)):
        return True
    try:  # a layer may hand its settings to a part of another class
        kind(**{**kind.tiny, **SETTINGS[setting]})
    except TypeError as wrong:
        return "unexpected keyword" not in str(wrong)
    except RegardError:
        return True
    return True
