"""The hook into diffusers, whose processors and dispatcher both call PyTorch's attention.

It adds to the functional hook the kind of each site (joint, where text and image share one
attention), the order of their tokens, and the record of each forward: timestep, step, guidance
branch, grid of the image. Processors are not replaced, so none has to be restored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any

import torch
from torch import nn

from regard.core.errors import RuleError, fail
from regard.models.engine import Engine
from regard.models.finding import calls_attention, weighs
from regard.models.forward import Forward, current_forward, given_to, telling, told_branches
from regard.models.functional import HEADS, FunctionalHook
from regard.models.hook import UnsupportedModelError
from regard.models.removal import Removal
from regard.models.site import Site, Sites
from regard.models.versions import supported
from regard.models.wrap import Around, hold

# The start of a processor's name -> the token order of its joint attention. Each is measured in
# tests/models/test_token_order.py: another text changes the keys at the positions of text.
ORDERS = {
    "AuraFlow": "text-image",
    "CogVideoX": "text-image",
    "CogView4": "text-image",
    "Flux": "text-image",
    "HiDream": "image-text",
    "HunyuanVideoAttn": "image-text",
    "JointAttn": "image-text",
    "Mochi": "image-text",
    "QwenDouble": "text-image",
}
# For these the module itself says whether text takes part.
ONLY_WITH_ADDED = ("JointAttn",)
# What processors call that compute attention themselves, or in another package.
WEIGHERS = {"get_attention_scores", "memory_efficient_attention", "flash_attention"}
FRAMES_FIRST = ("CogVideoX", "ConsisID")
BRANCHES = {"cond": "conditional", "uncond": "unconditional"}


def timestep() -> Any:
    """Return the timestep that the running forward of an attached model was called with.

    None outside of a forward, and where the model has no argument of this name.

    >>> timestep() is None
    True
    """
    now = current_forward()
    return None if now is None else now.timestep


def branches(*names: str) -> AbstractContextManager[None]:
    """Mark which guidance branches the batches hold, as equal blocks of rows in this order.

    Pipelines that run one forward for each branch name it themselves (`cache_context`); those that
    put the branches in one batch do not, and it cannot be inferred from the numbers.

    >>> with branches("unconditional", "conditional"):
    ...     pass  # image = pipeline(...)
    """
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        fail(RuleError, "names", repr(names), "different names", 'branches("conditional")')
    return telling(*names)


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
        processed = [
            (n, m)
            for n, m in model.named_modules()
            if getattr(m, "processor", None) is not None and not isinstance(m, type(model))
        ]
        for path, module in processed:
            _need_reach(path, module)
        found = [(n, m) for n, m in processed if calls_attention(m)]
        return [self.site_of(n, m, i) for i, (n, m) in enumerate(found)]

    def site_of(self, path: str, module: nn.Module, index: int) -> Site:
        """Read the kind and the order of tokens from the module and its processor."""
        name = type(module.processor).__name__.removeprefix("Fused").removeprefix("PAG")
        start, order = next((x for x in ORDERS.items() if name.startswith(x[0])), ("", None))
        added = getattr(module, "added_kv_proj_dim", None) is not None
        if start in ONLY_WITH_ADDED and not added:
            order = None
        heads = next((x for n in HEADS if isinstance(x := getattr(module, n, None), int)), None)
        cross = getattr(module, "is_cross_attention", False) or path.endswith("attn2")
        cross = cross and start not in ONLY_WITH_ADDED
        kind = "joint" if order else "cross" if cross else "self"
        if kind == "self" and path.endswith("attn1"):
            order = "image"
        size = getattr(module, "inner_dim", None)
        size = size // heads if isinstance(size, int) and heads else None
        return Site(index, kind, path, heads, heads, size, causal=False, modality=order)

    def read(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keep: dict[Any, Any]
    ) -> Forward:
        """Read the record of a forward from its arguments."""
        given = given_to(model, args, kwargs)
        time = given.get("timestep", given.get("timesteps"))
        x = given.get("hidden_states")
        return Forward(
            _step(time, keep),
            time,
            told_branches(),
            _grid(model, given),
            x.shape[1] if isinstance(x, torch.Tensor) and x.dim() == 3 else None,
        )

    def install(self, model: nn.Module, sites: Sites, engine: Engine, undo: Removal) -> None:
        """Hook the calls of every processor, and the branch that a pipeline names."""
        super().install(model, sites, engine, undo)
        if engine.stages and hasattr(model, "cache_context"):
            hold(model, "cache_context", _NoteBranch, engine, undo)


class _NoteBranch(Around):
    """Around `cache_context`, by which a pipeline names the branch that it runs."""

    @contextmanager
    def run(self, plain: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        branch = BRANCHES.get(name.removeprefix("pred_"))
        names = told_branches() or () if branch is None else (branch,)
        with plain(name, *args, **kwargs), telling(*names):
            yield


HOOK = DiffusersHook()


def _need_reach(path: str, module: Any) -> None:
    """Refuse processors, and backends of the dispatcher, that do not call PyTorch's attention."""
    processor = module.processor
    backend = getattr(processor, "_attention_backend", None)
    dispatch: Any = sys.modules.get("diffusers.models.attention_dispatch")
    if backend is None and dispatch is not None and hasattr(processor, "_attention_backend"):
        backend = dispatch._AttentionBackendRegistry.get_active_backend()[0]
    backend = str(getattr(backend, "value", backend or "native"))
    if "native" not in backend:
        fail(
            UnsupportedModelError,
            "model",
            f"the attention backend {backend!r} at {path}",
            "a backend of PyTorch's own",
            "model.set_attention_backend('native')",
        )
    if calls_attention(module) or not weighs(processor, WEIGHERS):
        return
    fail(
        UnsupportedModelError,
        "model",
        f"the processor {type(processor).__name__} at {path}, which no hook reaches",
        "a processor that calls F.scaled_dot_product_attention",
        "model.set_attn_processor(AttnProcessor2_0()), or set_default_attn_processor()",
    )


def _step(time: Any, keep: dict[Any, Any]) -> int:
    """Count the timesteps so far; the branches of one timestep share a step."""
    if time is None:
        return 0
    # A model that conditions on the first frame gives its tokens timestep 0.
    value = float(time.max() if isinstance(time, torch.Tensor) else time)
    if "first" not in keep or (value == keep["first"] and value != keep["last"]):
        keep["first"], keep["step"] = value, 0
    elif value != keep["last"]:
        keep["step"] += 1
    keep["last"] = value
    return int(keep["step"])


def _grid(model: nn.Module, given: dict[str, Any]) -> tuple[int, ...] | None:
    """Read the grid of image tokens from the arguments; None where they do not say."""
    config: Any = getattr(model, "config", None)
    x = given.get("hidden_states", given.get("sample"))
    shapes, ids = given.get("img_shapes"), given.get("img_ids")
    if shapes:
        inner = shapes[0] if isinstance(shapes[0], list) else shapes[:1]
        return _flat(inner[0]) if len(inner) == 1 else None
    if isinstance(ids, torch.Tensor):
        places = ids.reshape(-1, ids.shape[-2], ids.shape[-1])[0]
        sizes = [int(s) for s in (places.max(0).values + 1).tolist()]
        whole = bool((places == places.round()).all()) and bool((places >= 0).all())
        return _flat(sizes) if whole and prod(sizes) == len(places) else None
    sides = [given.get(s) for s in ("num_frames", "height", "width")]
    if all(isinstance(s, int) for s in sides):
        return _flat(sides)
    if not isinstance(x, torch.Tensor) or x.dim() not in (4, 5):
        return None
    sizes = list(x.shape[2:])
    if x.dim() == 5 and type(model).__name__.startswith(FRAMES_FIRST):
        sizes[0] = x.shape[1]
    patch = getattr(config, "patch_size", None) or 1
    if isinstance(patch, int):
        patch = (getattr(config, "patch_size_t", None) or 1, patch, patch)
    return _flat([s // p for s, p in zip(sizes, patch[-len(sizes) :], strict=True)])


def _flat(sizes: Any) -> tuple[int, ...]:
    """Return two axes for an image, three for a video of more than one frame."""
    found = [int(s) for s in sizes]
    while len(found) > 2 and found[0] == 1:
        found = found[1:]
    return tuple(found)
