"""Compiled FlexAttention: a kernel made for each kind of rule.

The block mask comes from the rule's tile map, so nothing of size [n, m] is ever looked at. What
the support and the score say of a pair is traced into a graph of plain tensor operations whose
tensors are its inputs: rules of one signature share a kernel, whatever their tensors hold.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.call import Call
from regard.core.errors import ExecutorError, RegardError
from regard.core.partial import Partial
from regard.core.score.base import At, Score, ScoreMod, keeping
from regard.core.score.contents import LowRankBias
from regard.core.score.matches import DotMatch, GeneralMatch, folded
from regard.core.support.base import Everything, Support
from regard.core.tilemap import FULL, PARTIAL, TileMap
from regard.core.value import Value
from regard.core.weigh import Softmax
from regard.run.chunked import Chunked, reached_learned
from regard.run.counting import count
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.isolation import contained, contained_out
from regard.run.transforms import Transforms
from regard.run.walk import tile_share

BLOCK = 128
NOTE = "compiles for some seconds at the first call of its kind"


class Flex(Executor):
    """Compile FlexAttention for a kind of rule, and run it."""

    name = "flex"
    transforms = Transforms.NONE

    def can(self, call: Call) -> Answer:
        """Softmax over scores that can be changed pair by pair."""
        reason = _why_not_rule(call) or _why_not_here(call) or no_compiler(call.q.device.type)
        if reason:
            return No(reason)
        if call.q.device.type == "cpu":
            return Yes(f"{NOTE}; forward only, and the lse, where wanted, is a second pass")
        return Yes(NOTE)

    def avoid_reason(self, call: Call) -> str:
        """Compiling for seconds is worth it on a GPU, where the kernel then serves for long."""
        return NOTE if call.q.device.type == "cpu" else ""

    def cost(self, call: Call) -> Cost:
        """Count the tiles that are not empty."""
        pairs = call.b * call.h * call.n * call.m * tile_share(call)
        size = call.q.element_size()
        moved = size * (2 * call.q.numel() + call.k.numel() + call.v.numel())
        blocks = 16.0 * (-(-call.n // BLOCK)) * (-(-call.m // BLOCK))
        slowness = 1.5 if call.q.device.type == "cpu" else 1.3
        return Cost(2.0 * pairs * (call.d + call.e), moved + blocks, blocks, slowness)

    def run(self, call: Call) -> Partial:
        """Run the kernel, with the lse."""
        return contained(call, self._run)

    def _run(self, call: Call) -> Partial:
        if call.q.device.type != "cpu":
            out, lse = _attend(call, lse=True)
            return Partial(out, lse)
        # On a CPU the kernel gives no lse: stream the scores once more, with values of no size.
        return Partial(
            _attend(call, lse=False)[0], Chunked().run(call.replace(v=call.v[..., :0])).lse
        )

    def out(self, call: Call) -> Tensor:
        """Run the kernel without the lse."""
        return contained_out(call, lambda own: _attend(own, lse=False)[0])


def _why_not_rule(call: Call) -> str:
    rule = call.rule
    if type(rule.weigh) is not Softmax:
        return f"weighs by {rule.weigh}, and FlexAttention only by softmax"
    match, steps = rule.score.match, rule.score.steps
    if not match.is_product:
        return f"{match} is no product of q and k"
    half = call.q.dtype in (torch.bfloat16, torch.float16)
    if half and not isinstance(match, DotMatch | GeneralMatch):
        return f"{match} would lose too much in {call.q.dtype}"
    for step in steps:
        if step.needs_row or type(step).placed is ScoreMod.placed:
            return f"{step} must see whole rows, or q and k themselves"
        if half and isinstance(step, LowRankBias) and any(t.requires_grad for t in step.tensors()):
            return f"it cannot learn {step} in {call.q.dtype}"
        if torch.is_grad_enabled() and reached_learned(step):
            return f"the function of {step} reaches tensors that are being learned"
    if call.placed:
        return "tokens stand at given positions, which its block mask cannot follow"
    if call.dropout:
        return "it has no dropout"
    return ""


def _why_not_here(call: Call) -> str:
    kind, dtype = call.q.device.type, call.q.dtype
    if kind not in ("cpu", "cuda"):
        return f"it was not tried on {kind}"
    if dtype == torch.float64:
        return "it has no float64"
    if not min(call.b, call.n, call.m, call.e):
        return "there is nothing to attend to"
    if kind == "cpu" and call.needs_grad:
        return "FlexAttention has no backward on a CPU"
    shared = call.h // call.g
    if kind == "cuda" and call.n < BLOCK and shared & (shared - 1):
        return f"few queries with {shared} heads to a key head, which is no power of two"
    return ""


@lru_cache
def no_compiler(kind: str) -> str:
    """Return what torch.compile lacks on a kind of device, or nothing."""
    if kind == "cuda":
        return "" if importlib.util.find_spec("triton") else "torch.compile needs triton"
    if sys.platform == "darwin" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return "FlexAttention needs an x86 CPU with AVX2"
    known = os.environ.get("CXX", "g++"), "g++", "clang++"
    return "" if any(map(shutil.which, known)) else "torch.compile needs a C++ compiler"


class _Kernel(NamedTuple):
    """What is made once for a kind of call."""

    mask: Callable[..., Tensor] | None
    score: Callable[..., Tensor] | None
    run: Callable[..., Any]


_kernels: dict[Hashable, _Kernel] = {}


def _attend(call: Call, lse: bool) -> tuple[Tensor, Tensor | None]:
    """Run the kernel of a call: out [b, h, n, e] and lse [b, h, n] or None."""
    q, k, scale, score = _prepared(call)
    v = pad(call.v, (0, _missing(call.e)))
    support, offset = _support_here(call), call.rule.offset
    key = (
        support.signature, offset > 0, score.signature, lse, q.device.type, q.dtype,
        q.shape[1], k.shape[1], q.shape[3], v.shape[3], _seen(support), _seen(score),
    )  # fmt: skip
    kernel = _kernels.get(key)
    if kernel is None:
        kernel = _kernels[key] = _make(support, offset > 0, score, lse, q.device, call.h != call.g)
    blocks = _block_mask(call, support, kernel)
    _count(call, q, v)
    score_mod = None
    if kernel.score is not None:
        score_mod = _score_mod(kernel.score, _with_offset(score.tensors(), offset, q.device))
    try:
        made = kernel.run(q, k, v, score_mod, blocks, scale)
    except RegardError:
        raise
    except Exception as broken:
        raise ExecutorError(
            "executor", f"'flex', whose compiler said: {_first_line(broken)}",
            "a rule that FlexAttention can compile", "take executor='chunked'",
        ) from broken  # fmt: skip
    out, found = made if lse else (made, None)
    return out[..., : call.e], found


def _count(call: Call, q: Tensor, v: Tensor) -> None:
    """Count the pairs of blocks that are not empty; a block at the end is cut there."""
    pairs = tile_share(call) * call.b * call.h * call.n * call.m
    width = q.shape[-1] + v.shape[-1]
    count(pairs, width, q.element_size() * (call.b * (call.h * call.n + call.g * call.m) * width))


def _seen(part: Value) -> Hashable:
    """What functions of a part read beside its tensors: a graph keeps these as they were."""
    if not part.functions():
        return ()
    tensors, settings = part.reads()
    return (*settings, *map(id, tensors[len(part.tensors()) :]))


def _prepared(call: Call) -> tuple[Tensor, Tensor, float, Score]:
    """Give q, k, scale, and what is left of the score, with tensors that are looked up by place."""
    q, k, score = call.q, call.k, call.rule.score
    if any(t.device != q.device for t in score.tensors()):
        score = score.to(q.device)
    steps = tuple(step.placed(q, k) for step in score.steps)
    rest = Score(score.match, steps)  # type: ignore[arg-type]  # `can` made sure of every step
    if q.dtype == torch.float32:
        made = folded(rest, q, k)
        assert made is not None
        q, k, scale, rest = made
    else:  # scores are float32 and channels are not: only the match itself is carried
        product = score.match.prepare(q, k)
        assert product is not None
        q, k, scale = product
        rest = Score(DotMatch(scale), steps)  # type: ignore[arg-type]
    more = _missing(q.shape[-1])
    # The scale is an argument of the kernel, not of the graph.
    return pad(q, (0, more)), pad(k, (0, more)), scale, rest.replace(match=DotMatch())


def _missing(size: int) -> int:
    """Channels of zeros that bring a head size to a multiple of 16."""
    return -size % 16


def _support_here(call: Call) -> Support:
    """Return the support with its tensors on the device of q, kept for the next call."""
    support, device = call.rule.support, call.q.device
    if all(t.device == device for t in support.tensors()):
        return support
    return support.memo(("on", str(device)), lambda: support.to(device))


def _with_offset(
    tensors: Sequence[Tensor], offset: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Append the offset as a tensor, so that decoding further on is the same kernel."""
    return (*tensors, torch.tensor(offset, device=device)) if offset else tuple(tensors)


def _make(
    support: Support, late: bool, score: Score, lse: bool, device: torch.device, grouped: bool
) -> _Kernel:
    """Trace what the rule says of a pair, and compile the kernel around it."""

    def shift(i: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        return (i + tensors[-1], tensors[:-1]) if late else (i, tensors)

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor, *tensors: Tensor) -> Tensor:
        i, own = shift(i, tensors)
        return support.with_tensors(own).allows(b, h, i, j)

    def change(s: Tensor, b: Tensor, h: Tensor, row: Tensor, j: Tensor, *tensors: Tensor) -> Tensor:
        i, own = shift(row, tensors)
        at = At(b, h, row, j, i, j)
        for place, step in enumerate(score.with_tensors(own).steps):
            changed = step.change  # type: ignore[attr-defined]
            s = keeping(changed)(s, at) if place else changed(s, at)
        return s

    # One pair, but with an axis: tables looked up at a tensor without axes are read by Python.
    place = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(4)]
    number = torch.zeros(1, device=device)
    offset = int(late)
    traced_mask = traced_score = None
    if not isinstance(support, Everything):
        tensors = _with_offset(support.tensors(), offset, device)
        traced_mask = _traced(f"{support}", mask, [*place, *tensors])
    if score.steps:
        tensors = _with_offset(score.tensors(), offset, device)
        traced_score = _traced(f"{score}", change, [number, *place, *tensors])
    return _Kernel(traced_mask, traced_score, _compiled(lse, grouped))


def _traced(
    said: str, function: Callable[..., Tensor], like: list[Tensor]
) -> Callable[..., Tensor]:
    """Trace a function of a single pair into plain tensor operations."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with torch.no_grad():
            # Tensors that a user's function holds are kept by the graph as they are.
            trace = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)
            return trace(*(t.detach() for t in like))
    except RegardError:
        raise
    except Exception as broken:
        raise ExecutorError(
            "executor", f"'flex' on {said}, which does not trace: {_first_line(broken)}",
            "tensor operations only, without Python branches on what tensors hold",
            "use torch.where in place of `if`, or take executor='chunked'",
        ) from broken  # fmt: skip


def _compiled(lse: bool, grouped: bool) -> Callable[..., Any]:
    """Compile FlexAttention anew: torch keeps at most a few kernels for one code object."""
    from torch.nn.attention import flex_attention as flex

    more: dict[str, Any] = {}
    if lse and hasattr(flex, "AuxRequest"):
        more["return_aux"] = flex.AuxRequest(lse=True)
    elif lse:
        more["return_lse"] = True

    def attend(
        q: Tensor, k: Tensor, v: Tensor, score_mod: Any, block_mask: Any, scale: float
    ) -> Any:
        made = flex.flex_attention(
            q, k, v, score_mod, block_mask, scale, enable_gqa=grouped, **more
        )
        return (made[0], getattr(made[1], "lse", made[1])) if more else made

    code = attend.__code__.replace(co_name=f"attend_{len(_kernels)}")
    own = FunctionType(code, attend.__globals__, attend.__name__, None, attend.__closure__)
    # With sizes left open, torch 2.13 writes C++ that does not compile where tensors are captured.
    dynamic = None if torch.cuda.is_available() else False
    return torch.compile(own, fullgraph=True, dynamic=dynamic)


def _score_mod(graph: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    def score_mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return graph(s, b, h, i, j, *tensors)

    return score_mod


def _block_mask(call: Call, support: Support, kernel: _Kernel) -> Any:
    """Return the block mask of a call, kept with the tile map it was made of."""
    graph = kernel.mask
    if graph is None:
        return None
    offset, device = call.rule.offset, call.q.device
    tiles = support.tiles(call.n, call.m, BLOCK, offset=offset, device=device)

    def build() -> Any:
        tensors = _with_offset(support.tensors(), offset, device)

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return graph(b, h, i, j, *tensors)

        return block_mask(tiles, mask_mod)

    return tiles.memo(("flex", id(graph)), build)


def block_mask(tiles: TileMap, mask_mod: Callable[..., Tensor]) -> Any:
    """Build FlexAttention's `BlockMask` from a tile map, full and partial blocks kept apart."""
    from torch.nn.attention.flex_attention import BlockMask

    state = tiles.state.clone()
    # A block that hangs over the end is never full.
    if tiles.n_q % tiles.size[0]:
        state[:, :, -1][state[:, :, -1] == FULL] = PARTIAL
    if tiles.n_k % tiles.size[1]:
        state[..., -1][state[..., -1] == FULL] = PARTIAL
    partial, full = (_listed(state == kind) for kind in (PARTIAL, FULL))
    return BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=tiles.size,
        mask_mod=mask_mod,
        seq_lengths=(tiles.n_q, tiles.n_k),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Count the chosen blocks of each row [b, h, t_q], and list them first [b, h, t_q, t_k]."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.int().contiguous()


def _first_line(broken: Exception) -> str:
    text = str(broken).strip() or type(broken).__name__
    return text.splitlines()[0][:200]
