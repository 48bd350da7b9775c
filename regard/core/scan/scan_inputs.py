"""Check what a scan is given, and bring it to one form: heads, dtype, padding and documents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import (
    DeviceError,
    DtypeError,
    ShapeError,
    ValueRangeError,
    fail,
    shape_of,
)
from regard.core.heads import expand_heads
from regard.core.readable import can_be_read
from regard.core.scan.state import MomentumState, ScanState

Rate = float | Tensor
"""A log decay or log momentum: a number, `[h]`, `[h, d]`, `[b, h, n]` or `[b, h, n, d]`."""


@dataclass(frozen=True, eq=False)
class ScanTokens:
    """Hold the inputs of a scan as every form reads them.

    - `q`, `k`: `[b, h, n, d]`, `v`: `[b, h, n, e]`, all heads expanded, float32 or float64
    - `log_decay`, `log_momentum`: `None` or `[b|1, h|1, n|1, d|1]`, at most 0, `-inf` at resets
    - `beta`: `None` or `[b, h, n]`
    - `dtype`: what the output goes back to
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    log_momentum: Tensor | None
    beta: Tensor | None
    dtype: torch.dtype

    @property
    def memory_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the memory, `[b, h, d, e]`."""
        b, h, _, d = self.q.shape
        return b, h, d, self.v.shape[-1]

    def total(self, rate: Tensor | None) -> Tensor:
        """Sum a rate over the tokens: `[b, h, 1]` or `[b, h, d]`, zeros where there is none."""
        b, h, n, _ = self.q.shape
        if rate is None:
            return self.q.new_zeros(b, h, 1)
        return rate.expand(b, h, n, rate.shape[-1]).sum(2)

    def between(self, start: int, stop: int) -> ScanTokens:
        """Cut out the tokens from `start` to `stop`."""

        def cut(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[2] == 1 else x[:, :, start:stop]

        q, k, v = (x[:, :, start:stop] for x in (self.q, self.k, self.v))
        beta = None if self.beta is None else self.beta[:, :, start:stop]
        return ScanTokens(q, k, v, cut(self.log_decay), cut(self.log_momentum), beta, self.dtype)


def starts(documents: Tensor) -> Tensor:
    """Mark the first token of every packed document but the first: `[b, n]` ids to bool.

    The first token continues whatever state the scan is given.

    >>> starts(torch.tensor([[7, 7, 9, 9, 9]])).int().tolist()
    [[0, 0, 1, 0, 0]]
    """
    if documents.ndim != 2:
        fail(ShapeError, "documents", shape_of(documents), "ids of shape [b, n]", "add the batch")
    changed = documents[:, 1:] != documents[:, :-1]
    return torch.cat((torch.zeros_like(documents[:, :1], dtype=torch.bool), changed), dim=1)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Rate | None = None,
    log_momentum: Rate | None = None,
    beta: Rate | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
) -> ScanTokens:
    """Check the inputs of a scan and bring them to the form of `ScanTokens`.

    The one place where key heads are expanded, low precision is lifted to float32, padding
    (`keep` false) becomes a zero key with no decay, and a document's first token (`reset`)
    becomes a log decay of minus infinity.

    >>> x = torch.ones(1, 2, 3, 4)
    >>> prepare(x, x, x, log_decay=-0.1).log_decay.shape
    torch.Size([1, 2, 1, 1])
    """
    _check_qkv(q, k, v)
    h, g = q.shape[1], k.shape[1]
    if not (isinstance(scale, int | float) and math.isfinite(scale)):
        fail(ValueRangeError, "scale", repr(scale), "a finite number", "leave it out for 1.0")
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    dtype = v.dtype
    decay = _rate("log_decay", log_decay, q, g, work, channels=log_momentum is None)
    momentum = _rate("log_momentum", log_momentum, q, g, work, channels=False)
    strength = _strength(beta, q, g, work)
    q, k, v = q.to(work), k.to(work), v.to(work)
    if scale != 1.0:
        q = q * scale
    for name, mask in (("keep", keep), ("reset", reset)):
        if mask is not None:
            _check_mask(name, mask, q)
    if keep is not None:
        real = keep[:, None, :, None]
        k = k.masked_fill(~real, 0.0)
        decay = None if decay is None else torch.where(real, decay, 0.0)
        momentum = None if momentum is None else torch.where(real, momentum, 0.0)
    if reset is not None:
        fresh = reset[:, None, :, None]
        nothing = q.new_zeros(()) if decay is None else decay
        decay = torch.where(fresh, -math.inf, nothing)
        momentum = None if momentum is None else torch.where(fresh, -math.inf, momentum)
    return ScanTokens(
        q, expand_heads(k, h), expand_heads(v, h), decay, momentum, strength, dtype
    )  # fmt: skip


def initial_memory(state: object, tokens: ScanTokens) -> Tensor:
    """Return the memory a scan begins with, `[b, h, d, e]`: that of `state`, or zeros."""
    if state is None:
        return tokens.v.new_zeros(tokens.memory_shape)
    if not isinstance(state, ScanState):
        fail(
            ValueRangeError, "state", type(state).__name__, "a ScanState or None",
            "pass the state that scan returned",
        )  # fmt: skip
    return _check_memory("state.memory", state.memory, tokens)


def initial_pair(state: object, tokens: ScanTokens) -> tuple[Tensor, Tensor]:
    """Return the (memory, momentum) a momentum scan begins with, each `[b, h, d, e]`."""
    if state is None:
        zeros = tokens.v.new_zeros(tokens.memory_shape)
        return zeros, zeros
    if not isinstance(state, MomentumState):
        fail(
            ValueRangeError, "state", type(state).__name__, "a MomentumState or None",
            "pass the state that scan_momentum returned",
        )  # fmt: skip
    return (
        _check_memory("state.memory", state.memory, tokens),
        _check_memory("state.momentum", state.momentum, tokens),
    )


def check_chunk(chunk: object) -> int:
    """Return `chunk` when it is a whole number of at least 1."""
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        fail(ValueRangeError, "chunk", repr(chunk), "a whole number of at least 1", "use 64")
    return chunk


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            fail(DtypeError, name, shape_of(x), "a tensor", "convert it with torch.as_tensor")
        if x.ndim != 4:
            fail(ShapeError, name, shape_of(x), "the layout [b, h, n, d]", "add or move dimensions")
        if not x.dtype.is_floating_point:
            fail(DtypeError, name, x.dtype, "a real floating dtype", "convert it to float32")
        if x.dtype != q.dtype:
            fail(DtypeError, name, x.dtype, f"the dtype of q, {q.dtype}", "convert all three alike")
        if x.device != q.device:
            fail(DeviceError, name, x.device, f"the device of q, {q.device}", "move it there")
        if x.shape[0] != q.shape[0] or x.shape[2] != q.shape[2]:
            want = f"batch {q.shape[0]} and length {q.shape[2]}, as q has"
            fail(ShapeError, name, shape_of(x), want, "give every token its q, k and v")
    if min(*q.shape, *k.shape, *v.shape) < 1:
        fail(ShapeError, "q", shape_of(q), "no empty dimension", "skip the call when n is 0")
    if k.shape[3] != q.shape[3]:
        fail(ShapeError, "k", shape_of(k), f"head size {q.shape[3]}, as q has", "project k to it")
    if v.shape[1] != k.shape[1]:
        fail(ShapeError, "v", shape_of(v), f"{k.shape[1]} heads, as k has", "give k and v alike")
    if q.shape[1] % k.shape[1]:
        want = f"a number of heads that divides the {q.shape[1]} of q"
        fail(ShapeError, "k", shape_of(k), want, "repeat or regroup the key heads")


def _rate(
    name: str, rate: Rate | None, q: Tensor, g: int, work: torch.dtype, channels: bool = True
) -> Tensor | None:
    """Expand a log rate to `[b|1, h, n|1, d|1]`, checking shape, kind and sign."""
    if rate is None:
        return None
    b, h, n, d = q.shape
    x = _floats(name, rate, q)
    layouts = {0: (), 1: (h,), 2: (h, d), 3: (b, h, n), 4: (b, h, n, d)}
    if not channels:
        layouts = {0: (), 1: (h,), 3: (b, h, n)}
    x = _expanded(x, h, g)
    if tuple(x.shape) != layouts.get(x.ndim):
        offered = ", ".join(str(list(layout)) for layout in layouts.values() if layout)
        fail(ShapeError, name, shape_of(rate), f"a number or a shape of {offered}", "reshape it")
    # On other devices the check would make the host wait for the device, so it is left out.
    if x.device.type == "cpu" and can_be_read(x) and not bool((x <= 0).all()):
        fail(
            ValueRangeError, name, f"a largest value of {x.max().item():.3g}",
            "logarithms of rates in (0, 1], so at most 0 and no NaN",
            "pass rate.log(), or F.logsigmoid(x) for a learned one",
        )  # fmt: skip
    x = x.to(work)
    if x.ndim in (0, 1):
        return x.reshape(1, -1, 1, 1).expand(1, h, 1, 1)
    return x[None, :, None, :] if x.ndim == 2 else x.unsqueeze(-1) if x.ndim == 3 else x


def _strength(beta: Rate | None, q: Tensor, g: int, work: torch.dtype) -> Tensor | None:
    """Expand the delta rule's writing strength to `[b, h, n]`."""
    if beta is None:
        return None
    b, h, n, _ = q.shape
    x = _floats("beta", beta, q).to(work)
    x = _expanded(x, h, g)
    if tuple(x.shape) not in ((), (h,), (b, h, n)):
        want = f"a number, [{h}] or [{b}, {h}, {n}]"
        fail(ShapeError, "beta", shape_of(beta), want, "give one strength per token and head")
    return (x if x.ndim == 3 else x.reshape(1, -1, 1)).expand(b, h, n)


def _expanded(x: Tensor, h: int, g: int) -> Tensor:
    """Return a rate or strength of `g` key heads one entry per query head."""
    if x.ndim in (1, 2) and x.shape[0] == g:
        return expand_heads(x[None], h)[0]
    return expand_heads(x, h) if x.ndim in (3, 4) and x.shape[1] == g else x


def _floats(name: str, x: Rate, q: Tensor) -> Tensor:
    if isinstance(x, Tensor):
        if not x.dtype.is_floating_point:
            fail(DtypeError, name, x.dtype, "a real floating dtype", "convert it to float32")
        if x.device != q.device:
            fail(DeviceError, name, x.device, f"the device of q, {q.device}", "move it there")
        return x
    if not isinstance(x, int | float) or isinstance(x, bool):
        fail(DtypeError, name, shape_of(x), "a number or a tensor", "pass torch.tensor(...)")
    return torch.tensor(float(x), dtype=torch.float64, device=q.device)


def _check_mask(name: str, mask: Tensor, q: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else shape_of(mask)
        fail(DtypeError, name, got, "a bool tensor", "compare it: mask = mask != 0")
    if mask.shape != (q.shape[0], q.shape[2]):
        want = f"shape [{q.shape[0]}, {q.shape[2]}], batch by tokens"
        fail(ShapeError, name, shape_of(mask), want, "give one mark per token")
    if mask.device != q.device:
        fail(DeviceError, name, mask.device, f"the device of q, {q.device}", "move it there")


def _check_memory(name: str, memory: Tensor, tokens: ScanTokens) -> Tensor:
    if memory.shape != tokens.memory_shape:
        want = f"shape {list(tokens.memory_shape)}, [b, h, d, e] (e + 1 where normalized)"
        fail(ShapeError, name, shape_of(memory), want, "pass the state of the same layer and batch")
    if memory.dtype != tokens.v.dtype:
        want = f"{tokens.v.dtype}, in which memories are kept"
        fail(DtypeError, name, memory.dtype, want, "do not lower the precision of a state")
    if memory.device != tokens.v.device:
        fail(DeviceError, name, memory.device, f"{tokens.v.device}, as q", "move the state there")
    return memory
