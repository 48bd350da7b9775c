"""The hook into any other module: `F.scaled_dot_product_attention`, caught while a site runs.

A `TorchFunctionMode` is active during the forward of a site, in the thread that runs it, and ends
with the forward's frame, also on exceptions; so threads and recomputation in backward work too.
"""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from types import FunctionType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regard.core.call import Call
from regard.core.errors import fail
from regard.models.engine import Engine
from regard.models.finding import calls_attention
from regard.models.hook import Held, UnsupportedModelError
from regard.models.removal import Removal, exclusive, run_within
from regard.models.sdpa import call_of
from regard.models.site import Site, Sites
from regard.models.weights import closed_weights
from regard.models.wrap import Around, hold

SDPA = F.scaled_dot_product_attention
MHA = F.multi_head_attention_forward
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")

# Engines that disable the fused path of nn.TransformerEncoder, and whether it was on before.
_slowed: list[Engine] = []
_fast_before = True


class _AttachedThread(threading.local):
    """State of a thread: the forward of an attached model, and whether a call is being run."""

    def __init__(self) -> None:
        self.tally: _Tally | None = None
        self.busy = False


_thread = _AttachedThread()


class _Tally:
    """Which site the forward of a model has passed last, and whether any call was caught."""

    def __init__(self) -> None:
        self.passed: _ServeFunctions | None = None
        self.reached = False


class FunctionalHook:
    """Hook into modules whose code calls `F.scaled_dot_product_attention`."""

    name = "functional"

    def find(self, model: Any) -> list[Site]:
        """Find every module whose code calls it, directly or through a function."""
        if not isinstance(model, nn.Module):
            return []
        found = [(n, m) for n, m in model.named_modules() if calls_attention(m)]
        grid = _grid_of(model)
        return [replace(self.site_of(n, m, i), grid=grid) for i, (n, m) in enumerate(found)]

    def site_of(self, path: str, module: nn.Module, index: int) -> Site:
        """Describe the site of a module; layers are numbered in order of modules."""
        heads = next((x for n in HEADS if isinstance(x := getattr(module, n, None), int)), None)
        size = getattr(module, "head_dim", None)
        kind = "cross" if re.search(r"cross|multihead_attn", path.rsplit(".", 1)[-1]) else "self"
        return Site(index, kind, path, heads, heads, size if isinstance(size, int) else None)

    def install(self, model: nn.Module, sites: Sites, engine: Engine, undo: Removal) -> None:
        """Catch the calls inside the forward of every site; without stages, do nothing."""
        if not engine.stages:
            return
        _need_uncompiled(model)
        undo.add(lambda: _allow_fast_path(engine))
        _keep_from_fast_path(engine)
        for site in sites:
            module = model.get_submodule(site.module)
            hold(module, "forward", partial(_ServeFunctions, module, site), engine, undo)
        # Last, and so removed first: other threads may be inside a forward meanwhile.
        kind = type(model).__name__
        hold(model, "forward", partial(_NeedReach, kind), engine, undo)


HOOK = FunctionalHook()


@exclusive
def _keep_from_fast_path(engine: Engine) -> None:
    """Disable the fused path of nn.TransformerEncoder, which no function mode can see into."""
    global _fast_before
    if not _slowed:
        _fast_before = torch.backends.mha.get_fastpath_enabled()
    _slowed.append(engine)
    torch.backends.mha.set_fastpath_enabled(False)


@exclusive
def _allow_fast_path(engine: Engine) -> None:
    if engine in _slowed:
        # Restore before removing: this may be interrupted, and run again.
        torch.backends.mha.set_fastpath_enabled(_fast_before if len(_slowed) == 1 else False)
        _slowed.remove(engine)


def _need_uncompiled(model: nn.Module) -> None:
    """Refuse code that is already compiled: it would silently run without the stages."""
    for path, module in model.named_modules():
        wrapped = type(module).__name__ == "OptimizedModule"
        if wrapped or getattr(module, "_compiled_call_impl", None) is not None:
            fail(
                UnsupportedModelError,
                "model",
                f"{path or type(model).__name__}, which is compiled already",
                "a model that is compiled while stages are attached, or not at all",
                "attach first, then compile; the model inside is `_orig_mod`",
            )


def _grid_of(model: Any) -> tuple[int, ...] | None:
    """Read the grid of a vision transformer of timm; None where tokens are merged on the way."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    places, before = getattr(model, "pos_embed", None), getattr(model, "num_prefix_tokens", None)
    if not isinstance(grid, tuple) or not isinstance(places, Tensor) or places.dim() != 3:
        return None
    return grid if places.shape[1] in (prod(grid), prod(grid) + (before or 0)) else None


class _ServeFunctions(Around):
    """Around the forward of a site: its calls of attention go through the attached engines."""

    def __init__(self, module: nn.Module, site: Site) -> None:
        super().__init__()
        self.module, self.held = ref(module), Held(site)
        self.reached = self.warned = False
        # timm's explicit path is equivalent, but cannot be caught.
        self.explicit = getattr(module, "fused_attn", None) is False

    def changed(self) -> None:
        self.held = self.held.by(self.holders)
        module: Any = self.module()
        if self.explicit and module is not None:
            module.fused_attn = bool(self.holders)

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        mode = _Catch(self)
        depth, busy = torch._C._len_torch_function_stack(), _thread.busy

        def run() -> Any:
            with mode:
                return plain(*args, **kwargs)

        def leave() -> None:
            mode.live = False
            _thread.busy = busy
            _leave_modes(depth)

        out = run_within(run, leave)
        if not self.reached and not self.warned and self.holders:
            self.warned = True
            warnings.warn(
                f"{self.held.site.module or 'the model'} ran without a call of attention that "
                "a hook reaches: no stage ran there",
                stacklevel=4,
            )
        return out


def _leave_modes(depth: int) -> None:
    """Remove our modes from the stack down to a depth; the modes of others stay."""
    kept: list[Any] = []
    while torch._C._len_torch_function_stack() > depth:
        top = torch._C._pop_torch_function_stack()
        if not isinstance(top, _Catch):
            kept.append(top)
    for mode in reversed(kept):
        torch._C._push_on_torch_function_stack(mode)


class _NeedReach(Around):
    """Around the forward of a model: raise if it passed sites and no call was caught."""

    order = -1  # the model may be a site itself

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.reached = kind, False

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before, tally, engines = _thread.tally, _Tally(), self.holders

        def run() -> Any:
            _thread.tally = tally
            return plain(*args, **kwargs)

        def leave() -> None:
            _thread.tally = before

        out = run_within(run, leave)
        passed, self.reached = tally.passed, self.reached or tally.reached
        # Detaching in another thread meanwhile removes what would have been caught.
        if passed is not None and not self.reached and self.holders == engines:
            fail(
                UnsupportedModelError,
                "model",
                f"{self.kind}, whose forward attends in {passed.held.site.module or 'itself'} "
                "in a way no hook reaches",
                "a call of F.scaled_dot_product_attention",
                "switch the model to its fused attention, or call regard.attend in that module",
            )
        return out


class _Catch(TorchFunctionMode):
    """Run the attention calls of one forward of a module through its engine."""

    def __init__(self, serve: _ServeFunctions) -> None:
        super().__init__()
        self.serve, self.calls, self.live = serve, 0, True
        if _thread.tally is not None:
            _thread.tally.passed = serve

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (SDPA, MHA) or _thread.busy or not self.live or not self.serve.holders:
            return func(*args, **kwargs)
        held, index = self.serve.held, self.calls
        self.calls += 1
        self.serve.reached = True
        if _thread.tally is not None:
            _thread.tally.reached = True
        site = held.site if not index else replace(held.site, index=index)
        if not held.engine.serving(site):
            return func(*args, **kwargs)  # its own kernel, to the bit
        serve = _attend if func is SDPA else _multi_head

        def run() -> Any:
            _thread.busy = True
            return serve(held.engine, site, *args, **kwargs)

        def leave() -> None:
            _thread.busy = False

        return run_within(run, leave)


def _attend(engine: Engine, site: Site, *args: Any, **kwargs: Any) -> Tensor:
    call, shape = call_of(site, *args, **kwargs)
    return engine.run(call).reshape(shape)


_MHA_SIGNATURE = inspect.signature(MHA)


def _multi_head(
    engine: Engine, site: Site, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run PyTorch's multi-head code with our attention in it, and return weights if asked."""
    bound = _MHA_SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    asked = bound.arguments["need_weights"]
    bound.arguments["need_weights"] = False
    if bound.arguments["attn_mask"] is not None:
        bound.arguments["is_causal"] = False  # only a hint beside the mask
    seen: list[Call] = []

    def attention(*inner: Any, **named: Any) -> Tensor:
        call, shape = call_of(site, *inner, **named)
        seen.append(call)
        return engine.run(call).reshape(shape)

    out, _ = _with_attention(attention)(*bound.args, **bound.kwargs)
    if not asked:
        return out, None
    weights = closed_weights(seen[-1], "need_weights").to(out.dtype)
    if bound.arguments["average_attn_weights"]:
        weights = weights.mean(dim=1)
    return out, weights if bound.arguments["query"].dim() == 3 else weights.squeeze(0)


def _with_attention(attention: Callable[..., Tensor]) -> Callable[..., Any]:
    """Copy `multi_head_attention_forward` with another attention; no global is changed."""
    plain: Any = MHA
    names = {
        **plain.__globals__,
        "scaled_dot_product_attention": attention,
        "has_torch_function": lambda *_: False,
    }
    copy = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy
