"""Attach to any model: where it attends (sites), what runs there (stages), and how (hooks)."""

from regard.models.attach import Attached, attach
from regard.models.engine import Engine
from regard.models.estimate import Estimate, estimate
from regard.models.forward import Forward, current_forward
from regard.models.hook import Hook, UnsupportedModelError
from regard.models.loading import packaged
from regard.models.site import Site, Sites
from regard.models.stage import Edit, Null, Stage

__all__ = [
    "Attached",
    "Edit",
    "Engine",
    "Estimate",
    "Forward",
    "Hook",
    "Null",
    "Site",
    "Sites",
    "Stage",
    "UnsupportedModelError",
    "attach",
    "current_forward",
    "estimate",
    "packaged",
]
