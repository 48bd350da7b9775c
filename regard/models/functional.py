"""The way into any other module: `F.scaled_dot_product_attention`, caught while a site runs.

A function mode is entered when the forward of a site begins and left when it ends, by an exception
too, in the thread that runs it; so threads and recomputation in backward are served alike.
"""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from math import prod
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regard.core.call import Call
from regard.core.errors import fail
from regard.models.engine import Engine
from regard.models.finding import calls_attention
from regard.models.hook import Removal, UnsupportedModelError
from regard.models.sdpa import call_of
from regard.models.site import Site, Sites
from regard.models.transformers import _Held
from regard.models.weights import closed_weights

SDPA = F.scaled_dot_product_attention
MHA = F.multi_head_attention_forward
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")

_lock = threading.RLock()
_records: WeakKeyDictionary[nn.Module, _Record] = WeakKeyDictionary()
_attached = 0
_fast_before = True


class _Record(_Held):
    """What is attached to one module, and what is known of its forwards."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.enter: Any = None
        self.leave: Any = None
        self.explicit = False
        self.inside = 0
        self.entered = self.reached = self.warned = False

    def unhook(self) -> None:
        """Take the hooks off; a forward that is running keeps its leave, which takes itself off."""
        self.enter.remove()
        if not self.inside:
            self.leave.remove()


class _Here(threading.local):
    """What this thread is in: sites entered, and whether a call is being run."""

    def __init__(self) -> None:
        self.entered: list[_Catch] = []
        self.busy = False


_here = _Here()


class FunctionalHook:
    """Hook into modules whose code calls `F.scaled_dot_product_attention`."""

    name = "functional"

    def find(self, model: Any) -> list[Site]:
        """Name every module whose code calls it, itself or through a function it calls."""
        if not isinstance(model, nn.Module):
            return []
        found = [(n, m) for n, m in model.named_modules() if calls_attention(m)]
        grid = _grid_of(model)
        return [replace(self.site_of(n, m, i), grid=grid) for i, (n, m) in enumerate(found)]

    def site_of(self, path: str, module: nn.Module, index: int) -> Site:
        """Read a site from a module; layers are counted in order of the modules."""
        heads = next((x for n in HEADS if isinstance(x := getattr(module, n, None), int)), None)
        size = getattr(module, "head_dim", None)
        kind = "cross" if re.search(r"cross|multihead_attn", path.rsplit(".", 1)[-1]) else "self"
        return Site(index, kind, path, heads, heads, size if isinstance(size, int) else None)

    def install(self, model: nn.Module, sites: Sites, engine: Engine) -> Removal:
        """Enter the mode around the forward of every site; with no stage, do nothing at all."""
        if not engine.stages:
            return lambda: None
        _need_uncompiled(model)
        modules = [model.get_submodule(site.module) for site in sites]
        with _lock:
            _hold_fast_path(1)
            for module, site in zip(modules, sites, strict=True):
                record = _records.get(module)
                if record is None:
                    record = _records[module] = _Record(site)
                    record.enter = module.register_forward_pre_hook(_enter)
                    record.leave = module.register_forward_hook(_leave, always_call=True)
                    # timm's explicit path is of the same meaning, but out of reach.
                    record.explicit = getattr(module, "fused_attn", None) is False
                    if record.explicit:
                        module.fused_attn = True  # type: ignore[assignment]
                record.engines.append(engine)
                record.joined()
            records = [_records[module] for module in modules]
            last = model.register_forward_hook(lambda m, _, __: _need_reach(m, records))
        done = False

        def remove() -> None:
            nonlocal done
            with _lock:
                if done:
                    return
                done = True
                last.remove()
                for module in modules:
                    record = _records[module]
                    record.engines.remove(engine)
                    if record.engines:
                        record.joined()
                        continue
                    del _records[module]
                    record.unhook()
                    if record.explicit:
                        module.fused_attn = False  # type: ignore[assignment]
                _hold_fast_path(-1)

        return remove


HOOK = FunctionalHook()


def _hold_fast_path(change: int) -> None:
    """Keep nn.TransformerEncoder from its fused path, which no function mode sees inside."""
    global _attached, _fast_before
    if _attached == 0:
        _fast_before = torch.backends.mha.get_fastpath_enabled()
    _attached += change
    torch.backends.mha.set_fastpath_enabled(_fast_before if _attached == 0 else False)


def _need_uncompiled(model: nn.Module) -> None:
    """Refuse code that is compiled already: it would run on without the stages, and not say so."""
    for path, module in model.named_modules():
        wrapped = type(module).__name__ == "OptimizedModule"
        if wrapped or getattr(module, "_compiled_call_impl", None) is not None:
            fail(
                UnsupportedModelError,
                "model",
                f"{path or type(model).__name__}, which is compiled already",
                "a model that is compiled while stages are attached, or not at all",
                "attach first, and compile within; the model inside is `_orig_mod`",
            )


def _grid_of(model: Any) -> tuple[int, ...] | None:
    """Read the grid of a vision transformer of timm; None where tokens are merged on the way."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    places, before = getattr(model, "pos_embed", None), getattr(model, "num_prefix_tokens", None)
    if not isinstance(grid, tuple) or not isinstance(places, Tensor) or places.dim() != 3:
        return None
    return grid if places.shape[1] in (prod(grid), prod(grid) + (before or 0)) else None


def _enter(module: nn.Module, _: Any) -> None:
    record = _records.get(module)
    if record is None:
        return
    mode = _Catch(module, record)
    with _lock:
        record.inside += 1
    record.entered = True
    mode.__enter__()  # type: ignore[no-untyped-call]
    _here.entered.append(mode)


def _leave(module: nn.Module, _: Any, out: Any) -> None:
    # A hook of somebody else may have raised before we entered.
    if not _here.entered or _here.entered[-1].module is not module:
        return
    mode = _here.entered.pop()
    mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    record = mode.record
    with _lock:
        record.inside -= 1
        if not record.inside and _records.get(module) is not record:
            record.leave.remove()
    if out is not None and not record.reached and not record.warned:
        record.warned = True
        warnings.warn(
            f"{record.site.module or type(module).__name__} ran without a call of attention that "
            "a hook reaches: no stage was asked there",
            stacklevel=2,
        )


def _need_reach(model: nn.Module, records: list[_Record]) -> None:
    """Raise where a whole forward has passed sites, and reached none."""
    if any(r.reached for r in records):
        return
    passed = next((r for r in records if r.entered), None)
    if passed is None:
        return
    fail(
        UnsupportedModelError,
        "model",
        f"{type(model).__name__}, whose forward attends in {passed.site.module or 'itself'} "
        "in a way no hook reaches",
        "a call of F.scaled_dot_product_attention",
        "switch the model to its fused attention, or call regard.attend in that module",
    )


class _Catch(TorchFunctionMode):
    """Turn the attention calls of one forward of a module into calls of its engine."""

    def __init__(self, module: nn.Module, record: _Record) -> None:
        super().__init__()
        self.module, self.record, self.calls = module, record, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (SDPA, MHA) or _here.busy or not self.record.engines:
            return func(*args, **kwargs)
        record, index = self.record, self.calls
        self.calls += 1
        record.reached = True
        site = record.site if not index else replace(record.site, index=index)
        if not record.engine.serving(site):
            return func(*args, **kwargs)  # its own kernel, to the bit
        _here.busy = True
        try:
            serve = _attend if func is SDPA else _multi_head
            return serve(record.engine, site, *args, **kwargs)
        finally:
            _here.busy = False


def _attend(engine: Engine, site: Site, *args: Any, **kwargs: Any) -> Tensor:
    call, shape = call_of(site, *args, **kwargs)
    return engine.run(call).reshape(shape)


_MHA_SIGNATURE = inspect.signature(MHA)


def _multi_head(
    engine: Engine, site: Site, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the code of PyTorch with our attention in it, and its weights where they are asked."""
    bound = _MHA_SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    asked = bound.arguments["need_weights"]
    bound.arguments["need_weights"] = False
    if bound.arguments["attn_mask"] is not None:
        bound.arguments["is_causal"] = False  # only a hint: the mask itself is there
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
    """Copy `multi_head_attention_forward` with another attention: no global is touched."""
    plain: Any = MHA
    names = {
        **plain.__globals__,
        "scaled_dot_product_attention": attention,
        "has_torch_function": lambda *_: False,
    }
    copy = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


__all__ = ["HOOK", "FunctionalHook"]
