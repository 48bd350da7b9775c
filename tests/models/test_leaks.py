"""Attaching a thousand times, and being raised out of it, leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regard.models import Edit, Null, Stage, attach, forward, functional

CYCLES, RAISED = 1000, 200


class Written(nn.Module):
    """Attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.qkv = 2, nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)


Made = tuple[nn.Module, Callable[[], torch.Tensor]]


def written() -> Made:
    model, x = nn.Sequential(Written(), nn.MultiheadAttention(8, 2)), torch.randn(2, 5, 8)
    return model, lambda: model[1](*3 * [model[0](x)])[0]


def llama() -> Made:
    pytest.importorskip("transformers")
    from tests.architectures import DECODERS, build

    model, ids = build("llama", DECODERS["llama"], causal=True), torch.arange(5, 10)[None]
    return model, lambda: model(ids).logits


def diffusion() -> Made:
    pytest.importorskip("diffusers")
    from tests.diffusion import build, wan

    model, inputs = build(wan)
    return model, lambda: model(timestep=torch.tensor([1]), return_dict=False, **inputs)[0]


class Trip(Stage):
    """Raises at a call, before or after it is run."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step = step

    def before(self, call: Any) -> Any:
        if self.step == "before":
            raise KeyError("told to")
        return call

    def after(self, call: Any, partial: Any) -> Any:
        raise KeyError("told to")


class BadBegin(Stage):
    """Raises when it is attached."""

    def begin(self, model: Any, sites: Any) -> None:
        raise KeyError("told to")


def raised(model: nn.Module, run: Callable[[], Any], way: int) -> None:
    """Raise out of an attachment: within it, when it begins, before and after a call."""
    if way == 0:
        with attach(model, [Null()], check=False):
            raise KeyError("told to")
    if way == 1:
        attach(model, [Null(), BadBegin()], check=False)
    with attach(model, [Null(), Trip(("before", "after")[way % 2])], check=False):
        run()


def cycle(model: nn.Module, run: Callable[[], Any], number: int) -> None:
    """Attach once; every fifth time is raised out of, in one of four ways."""
    if number % (CYCLES // RAISED) == 0:
        with pytest.raises(KeyError):
            raised(model, run, number // (CYCLES // RAISED) % 4)
        return
    with attach(model, [Null(), Edit("out", lambda o: 2 * o)], check=False):
        if number % 10 == 1:
            run()


def registrations(model: nn.Module) -> Any:
    """Everything that attaching may write to: hooks, registries, flags, attributes."""
    found: list[Any] = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ]
    found += [(len(m._forward_hooks_with_kwargs), *sorted(vars(m))) for m in model.modules()]
    found += [sorted(vars(type(m))) for m in model.modules()]
    found += [len(functional._slowed), functional._thread.tally, functional._thread.busy]
    found += [len(forward._thread.forwards), len(forward._thread.told)]
    found += [torch.overrides._get_current_function_mode(), torch.is_grad_enabled()]
    found += [torch.backends.mha.get_fastpath_enabled(), threading.active_count()]
    config: Any = getattr(model, "config", None)
    if hasattr(config, "_attn_implementation_internal"):
        from regard.models import attention_interface

        found += [str(config._attn_implementation_internal), len(attention_interface.held)]
    return found


@pytest.mark.parametrize("make", [written, llama, diffusion], ids=lambda f: f.__name__)
def test_a_thousand_attachments_leave_nothing(make: Callable[[], Made], seed: int) -> None:
    model, run = make()
    torch.set_grad_enabled(True)
    model.eval()
    with torch.no_grad():
        plain = run()
        for number in range(20):  # caches fill
            cycle(model, run, number)
        weights = {n: (x.clone(), x.data_ptr(), x.dtype) for n, x in model.state_dict().items()}
        before = registrations(model)
        gc.collect()
        objects = len(gc.get_objects())
        tracemalloc.start()
        try:
            sizes = []
            for number in range(CYCLES):
                cycle(model, run, number)
                if (number + 1) % (CYCLES // 4) == 0:
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert registrations(model) == before
        assert torch.equal(run(), plain)
    for name, x in model.state_dict().items():
        was, place, dtype = weights[name]
        assert torch.equal(x, was)
        assert (x.data_ptr(), x.dtype) == (place, dtype)
    # Half an object a cycle, or forty bytes (less than any object has), would be seen: a leak is in
    # every quarter, while a table that earlier tests have filled is made anew in one at most.
    assert len(gc.get_objects()) - objects < CYCLES // 2
    assert min(b - a for a, b in pairwise(sizes)) < 40 * CYCLES // 4, sizes


@pytest.mark.parametrize("make", [written, llama, diffusion], ids=lambda f: f.__name__)
def test_models_and_stages_are_let_go(make: Callable[[], Made]) -> None:
    model, run = make()
    stage = Edit("out", lambda o: 2 * o)
    with torch.no_grad(), attach(model, [stage], check=False) as attached:
        run()
    gone = [weakref.ref(x) for x in (model, stage, attached)]
    del model, run, stage, attached
    gc.collect()
    assert [x() for x in gone] == [None, None, None]


def test_a_leak_is_seen(seed: int) -> None:
    """The count of registrations does find a hook that is left."""
    model, _ = written()
    before = registrations(model)
    attached = attach(model, [Null()], check=False)
    assert registrations(model) != before
    attached.detach()
    assert registrations(model) == before
