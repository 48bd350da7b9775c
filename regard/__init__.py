"""See, steer, shrink, spread and swap attention in any PyTorch model.

A rule says what an attention does; `attend` runs it:

>>> import torch, regard
>>> q, k, v = (torch.randn(1, 8, 100, 64) for _ in range(3))
>>> rule = regard.Rule(regard.Causal() & (regard.Window(16) | regard.Sinks(4)))
>>> regard.attend(q, k, v, rule).shape
torch.Size([1, 8, 100, 64])

Public names are found on first use, so that `import regard` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

# Where each public name lives, in reading order. Type checkers read the same from __init__.pyi.
_HOME = {
    "regard.verbs": ("see", "compare", "shrink", "steer"),
    "regard.run.api": ("attend", "partial", "plan"),
    "regard.run.survey": ("survey",),
    "regard.core.survey": ("Survey",),
    "regard.run.scanning": ("scan", "scan_momentum"),
    "regard.core.rule": ("Rule",),
    "regard.core.support": (
        *("Support", "Everything", "Causal", "Window", "Sinks", "Dilated", "Strided", "Blocks"),
        *("Neighborhood", "Documents", "documents_from_lengths", "Padding", "PrefixLM"),
        *("SharedPrefix", "Attribute", "Kinds", "Tiles", "ChosenKeys", "PerHead", "Where"),
    ),
    "regard.core.score": (
        *("Score", "Dot", "General", "Additive", "Gaussian", "SoftCap", "Temperature"),
        *("Alibi", "DistanceBias", "T5Bias", "RelativeBias", "LatticeBias", "ShawBias"),
        *("LowRankBias", "Landmarks", "Cope", "KeyWeights", "GroupBias", "ScoreStep"),
    ),
    "regard.core.weigh": ("Weigh", "Softmax", "Sigmoid", "Relu", "Laplace", "Signed"),
    "regard.core.partial": ("Partial", "merge"),
    "regard.core.call": ("Call",),
    "regard.core.keys": ("Dense", "Keys"),
    "regard.core.key_forms": ("Packed", "Paged", "Ragged"),
    "regard.core.result": ("Result",),
    "regard.layers.registry": ("layer",),
    "regard.layers.building": ("model",),
    "regard.conversions.swapping": ("swap",),
    "regard.schemes.spreading": ("spread",),
    "regard.models.attach": ("attach",),
    "regard.models.estimate": ("estimate",),
    "regard.serving.passages": ("Passages",),
    "regard.serving.conversations": ("Conversations",),
    "regard.serving.threads": ("think_together",),
    "regard.core.errors": (
        *("RegardError", "ShapeError", "DtypeError", "DeviceError", "ValueRangeError"),
        *("RuleError", "ExecutorError", "CapabilityError", "MissingExtraError"),
        "VersionError",
    ),
}
# Rooms that are entered by name: regard.layers.list().
_ROOMS = ("controls", "layers", "memories", "policies", "schemes", "serving", "tasks")
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives, on first use (PEP 562)."""
    if name in _ROOMS:
        return importlib.import_module(f"regard.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Names to offer for completion."""
    return sorted(__all__)
