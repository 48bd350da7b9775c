"""The way into any other module: `F.scaled_dot_product_attention`, caught while a site runs.

A function mode is entered when the forward of a site begins and left when it ends, by an exception
too, in the thread that runs it; so threads and recomputation in backward are served alike.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regard.core.call import Call
from regard.core.errors import fail
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.score.dense import DenseBias
from regard.core.support import Causal, Everything, Padding, Support
from regard.core.support.dense import DenseMask
from regard.models.engine import Engine
from regard.models.hook import Removal, UnsupportedModelError
from regard.models.site import Site, Sites
from regard.models.transformers import _Held
from regard.models.weights import closed_weights

SDPA = F.scaled_dot_product_attention
MHA = F.multi_head_attention_forward
CALLED = {"scaled_dot_product_attention", "multi_head_attention_forward", "dispatch_attention_fn"}
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")

_lock = threading.RLock()
_held: WeakKeyDictionary[nn.Module, tuple[_Held, list[Any], bool]] = WeakKeyDictionary()
_attached = 0
_fast_before = True


class _Here(threading.local):
    """What this thread is in: sites entered, and whether a call is being run."""

    def __init__(self) -> None:
        self.entered: list[tuple[nn.Module, TorchFunctionMode]] = []
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
        return [self.site_of(n, m, i) for i, (n, m) in enumerate(found)]

    def site_of(self, path: str, module: nn.Module, index: int) -> Site:
        """Read a site from a module; layers are counted in order of the modules."""
        heads = next((x for n in HEADS if isinstance(x := getattr(module, n, None), int)), None)
        kind = "cross" if re.search(r"cross|multihead_attn", path.rsplit(".", 1)[-1]) else "self"
        return Site(layer=index, kind=kind, module=path, heads=heads, kv_heads=heads)

    def install(self, model: nn.Module, sites: Sites, engine: Engine) -> Removal:
        """Enter the mode around the forward of every site."""
        modules = [model.get_submodule(site.module) for site in sites]
        with _lock:
            _hold_fast_path(1)
            for module, site in zip(modules, sites, strict=True):
                if module not in _held:
                    handles = [
                        module.register_forward_pre_hook(_enter),
                        module.register_forward_hook(_leave, always_call=True),
                    ]
                    # timm's explicit path is of the same meaning, but out of reach.
                    explicit = getattr(module, "fused_attn", None) is False
                    if explicit:
                        module.fused_attn = True  # type: ignore[assignment]
                    _held[module] = (_Held(site), handles, explicit)
                _held[module][0].engines.append(engine)
                _held[module][0].joined()
        done = False

        def remove() -> None:
            nonlocal done
            with _lock:
                if done:
                    return
                done = True
                for module in modules:
                    held, handles, explicit = _held[module]
                    held.engines.remove(engine)
                    if held.engines:
                        held.joined()
                        continue
                    del _held[module]
                    for handle in handles:
                        handle.remove()
                    if explicit:
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


def calls_attention(module: nn.Module) -> bool:
    """Whether the code of a module, or of its processor, calls the attention of PyTorch."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return _class_calls(type(module)) or _class_calls(type(getattr(module, "processor", None)))


def _class_calls(kind: type) -> bool:
    return any(
        _code_calls(inspect.unwrap(f), 2)
        for base in kind.__mro__
        if base is not nn.Module and base.__module__.partition(".")[0] != "torch"
        for f in vars(base).values()
        if inspect.isfunction(f)
    )


def _code_calls(function: Any, depth: int) -> bool:
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if CALLED & set(code.co_names):
        return True
    inner = (function.__globals__.get(n) for n in code.co_names) if depth else ()
    return any(
        _code_calls(f, depth - 1)
        for f in inner
        if inspect.isfunction(f) and (f.__module__ or "").partition(".")[0] != "torch"
    )


def _enter(module: nn.Module, _: Any) -> None:
    mode = _Catch(module)
    mode.__enter__()  # type: ignore[no-untyped-call]
    _here.entered.append((module, mode))


def _leave(module: nn.Module, _: Any, __: Any) -> None:
    # A hook of somebody else may have raised before we entered.
    if _here.entered and _here.entered[-1][0] is module:
        _here.entered.pop()[1].__exit__(None, None, None)


class _Catch(TorchFunctionMode):
    """Turn the attention calls of one module into calls of its engine."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = _held.get(self.module)
        if _here.busy or found is None or func not in (SDPA, MHA):
            return func(*args, **kwargs)
        if not found[0].engine.serving(found[0].site):
            return func(*args, **kwargs)  # its own kernel, to the bit
        _here.busy = True
        try:
            serve = _attend if func is SDPA else _multi_head
            return serve(found[0], *args, **kwargs)
        finally:
            _here.busy = False


def _attend(held: _Held, *args: Any, **kwargs: Any) -> Tensor:
    call, shape = call_of(held.site, *args, **kwargs)
    return held.engine.run(call).reshape(shape)


def call_of(
    site: Site | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Call, list[int]]:
    """Read the arguments of SDPA as a call; give it with the shape its output should have."""
    if query.is_nested or query.dim() < 2:
        fail(
            UnsupportedModelError,
            getattr(site, "module", "model"),
            "nested tensors" if query.is_nested else f"{query.dim()} axes",
            "q, k and v of at least [n, d]",
            "pad the batch, and mask the padding",
        )
    if torch.is_autocast_enabled(query.device.type):
        low = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(low), key.to(low), value.to(low)
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    h = query.shape[-3] if query.dim() > 2 else 1
    shape = [*lead, *([h] if query.dim() > 2 else []), query.shape[-2], value.shape[-1]]

    def four(x: Tensor, heads: int) -> Tensor:
        x = x if x.dim() > 2 else x[None]
        return x.expand(*lead, heads, *x.shape[-2:]).reshape(-1, heads, *x.shape[-2:])

    q = four(query, h)
    k, v = (four(x, x.shape[-3] if enable_gqa else h) for x in (key, value))
    support: Support = Causal() if is_causal else Everything()
    score = Dot(scale)
    if attn_mask is not None:
        mask = attn_mask
        if mask.dim() > 4:
            mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
        mask = mask[(None,) * (4 - mask.dim())]
        mask = mask.expand(*mask.shape[:3], k.shape[2])
        if mask.dtype != torch.bool:
            score = score + DenseBias(mask)
        elif mask.shape[1] == mask.shape[2] == 1:
            support = support & Padding(mask[:, 0, 0])
        else:
            support = support & DenseMask(mask)
    return Call(q, k, v, Rule(support, score), dropout=dropout_p, site=site), shape


_MHA_SIGNATURE = inspect.signature(MHA)


def _multi_head(held: _Held, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Run the code of PyTorch with our attention in it, and its weights where they are asked."""
    bound = _MHA_SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    asked = bound.arguments["need_weights"]
    bound.arguments["need_weights"] = False
    if bound.arguments["attn_mask"] is not None:
        bound.arguments["is_causal"] = False  # only a hint: the mask itself is there
    seen: list[Call] = []

    def attention(*inner: Any, **named: Any) -> Tensor:
        call, shape = call_of(held.site, *inner, **named)
        seen.append(call)
        return held.engine.run(call).reshape(shape)

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


__all__ = ["HOOK", "FunctionalHook", "call_of", "calls_attention"]
