"""The way into diffusers: its processors and its dispatcher both end in PyTorch's attention.

What this adds to the functional hook: the kind of each site (joint, where text and image share one
attention), the order of their tokens, and the timestep of the forward that is running. Processors
are not replaced, so there is nothing of theirs to restore.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

from torch import nn

from regard.models.engine import Engine
from regard.models.functional import HEADS, FunctionalHook, calls_attention
from regard.models.hook import Removal
from regard.models.site import Site, Sites
from regard.models.versions import supported

# The start of a processor's name -> how its joint attention lays its tokens out.
ORDERS = {"JointAttn": "image-text", "Flux": "text-image", "QwenDouble": "text-image"}


class _Now(threading.local):
    def __init__(self) -> None:
        self.timesteps: list[Any] = []


_now = _Now()


def timestep() -> Any:
    """Give the timestep that the running forward of an attached model was called with.

    None outside of a forward, and where the model has no argument of this name.

    >>> timestep() is None
    True
    """
    return _now.timesteps[-1] if _now.timesteps else None


class DiffusersHook(FunctionalHook):
    """Hook into models of diffusers."""

    name = "diffusers"

    def find(self, model: Any) -> list[Site]:
        """Name every module whose processor attends."""
        if not isinstance(model, nn.Module) or not any(
            base.__module__.partition(".")[0] == "diffusers" for base in type(model).__mro__
        ):
            return []
        supported("diffusers")
        found = [
            (n, m)
            for n, m in model.named_modules()
            if getattr(m, "processor", None) is not None and calls_attention(m)
        ]
        return [self.site_of(n, m, i) for i, (n, m) in enumerate(found)]

    def site_of(self, path: str, module: nn.Module, index: int) -> Site:
        """Read the kind and the order of tokens from the module and its processor."""
        name = type(module.processor).__name__
        order = next((x for start, x in ORDERS.items() if name.startswith(start)), None)
        heads = next((x for n in HEADS if isinstance(x := getattr(module, n, None), int)), None)
        joint = getattr(module, "added_kv_proj_dim", None) is not None and order is not None
        cross = getattr(module, "is_cross_attention", False) or path.endswith("attn2")
        kind = "joint" if joint else "cross" if cross else "self"
        return Site(index, kind, path, heads, heads, modality=order)

    def install(self, model: nn.Module, sites: Sites, engine: Engine) -> Removal:
        """Install as the functional hook does, and note the timestep of each forward."""
        names = inspect.signature(type(model).forward).parameters
        place = list(names).index("timestep") - 1 if "timestep" in names else None

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            known = place is not None and len(args) > place
            _now.timesteps.append(args[place] if known else kwargs.get("timestep"))

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            if _now.timesteps:
                _now.timesteps.pop()

        remove_calls = super().install(model, sites, engine)
        handles = [
            model.register_forward_pre_hook(enter, with_kwargs=True),
            model.register_forward_hook(leave, always_call=True),
        ]

        def remove() -> None:
            remove_calls()
            for handle in handles:
                handle.remove()

        return remove


HOOK = DiffusersHook()

__all__ = ["HOOK", "DiffusersHook", "timestep"]
