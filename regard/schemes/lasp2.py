"""LASP-2: a scan over ranks whose only message is the memory left by each rank's tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regard.core.method import method
from regard.core.scan import (
    Rate,
    ScanState,
    ScanTokens,
    check_chunk,
    chunked,
)
from regard.core.scan.containment import Spoiled
from regard.core.scan.diagonal_plus_rank_one import low_rank_chunked
from regard.run.low_rank_scanning import scan_low_rank_with
from regard.run.scanning import scan_with
from regard.schemes.handshake import Meant, shake
from regard.schemes.messages import TIMEOUT, Peers
from regard.schemes.sharded_keys import peers_of


@method(
    "lasp2",
    call="from regard.schemes.lasp2 import scan_sharded\n"
    "out, state = scan_sharded(q, k, v, mesh=mesh, dim='cp', log_decay=-0.1)",
)
def scan_sharded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mesh: Any = None,
    dim: str | None = None,
    log_decay: Rate | None = None,
    beta: Rate | None = None,
    state: ScanState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
    normalize: float | None = None,
    chunk: int = 64,
    timeout: float = TIMEOUT,
) -> tuple[Tensor, ScanState]:
    """Scan a sequence whose pieces are on consecutive ranks: `regard.scan` over a mesh.

    q [b, h, n, d], k [b, g, n, d], v [b, g, n, e] are the tokens of this rank, which follow those
    of the rank before; pieces may differ in length. Arguments are those of `regard.scan`; `state`,
    the same on every rank, is the initial state of the whole sequence. Each rank sends its memory
    [b, h, d, e] and how older memories pass through its tokens, once in the forward and once in the
    backward, whatever the lengths. Returns out [b, h, n, e] and the state after the whole sequence,
    on every rank.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> x = torch.ones(1, 1, 4, 1)
    >>> scan_sharded(x, x, x)[0].flatten().tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> dist.destroy_process_group()
    """
    peers, chunk = peers_of(mesh, dim, timeout), check_chunk(chunk)

    def run(tokens: ScanTokens, start: Tensor, spoiled: Spoiled | None) -> tuple[Tensor, ScanState]:
        _agree("additive" if beta is None else "delta", tokens, peers, q)
        return _scan(tokens, start, peers, chunk, spoiled)

    return scan_with(
        run, q, k, v, log_decay=log_decay, beta=beta, state=state, keep=keep, reset=reset,
        scale=scale, normalize=normalize,
    )  # fmt: skip


def scan_low_rank_sharded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    mesh: Any = None,
    dim: str | None = None,
    log_decay: Rate | None = None,
    state: ScanState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
    chunk: int = 16,
    timeout: float = TIMEOUT,
) -> tuple[Tensor, ScanState]:
    """Scan by a diagonal and a rank-one map (RWKV-7) over a mesh: `scan_low_rank` of pieces.

    q, left, right [b, h, n, d], k [b, g, n, d], v [b, g, n, e] are the tokens of this rank, which
    follow those of the rank before. Each rank sends its memory [b, h, d, e] and the matrix
    [b, h, d, d] by which older ones pass through its tokens, once in the forward and once in the
    backward. Returns out [b, h, n, e] and the state after the whole sequence, on every rank.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> x = torch.ones(1, 1, 3, 1)
    >>> scan_low_rank_sharded(x, x, x, -x, x)[0].flatten().tolist()
    [1.0, 1.0, 1.0]
    >>> dist.destroy_process_group()
    """
    peers, chunk = peers_of(mesh, dim, timeout), check_chunk(chunk)

    def run(
        tokens: ScanTokens, left: Tensor, right: Tensor, start: Tensor, spoiled: Spoiled | None
    ) -> tuple[Tensor, ScanState]:
        _agree("low-rank", tokens, peers, q)
        return _scan_by_matrices(
            tokens, start, peers, spoiled,
            lambda some, memory: low_rank_chunked(some, left, right, memory, chunk),
        )  # fmt: skip

    return scan_low_rank_with(
        run, q, k, v, left, right, log_decay=log_decay, state=state, keep=keep, reset=reset,
        scale=scale,
    )  # fmt: skip


def _agree(kind: str, tokens: ScanTokens, peers: Peers, q: Tensor) -> None:
    """Check that all ranks scan the same, before anything is sent."""
    b, h, d, e = tokens.memory_shape
    channels = 1 if tokens.log_decay is None else tokens.log_decay.shape[-1]
    grad = " with gradients" if torch.is_grad_enabled() else ""
    meant = Meant(
        f"call {peers.calls}", f"lasp2{grad}", f"{kind} scan", f"decay of {channels}",
        f"{q.dtype} on {q.device.type}", f"b={b} h={h} d={d} e={e}", torch.__version__,
    )  # fmt: skip
    shake(meant, peers, q.device)


def message_bytes(b: int, h: int, d: int, e: int, *, delta: bool = False, channels: int = 1) -> int:
    """Count the bytes that a rank sends to each other rank in a forward, independent of length.

    >>> message_bytes(1, 2, 4, 4)
    136
    """
    return 4 * b * h * (d * e + (d * d if delta else channels))


def _scan(
    tokens: ScanTokens, start: Tensor, peers: Peers, chunk: int, spoiled: Spoiled | None
) -> tuple[Tensor, ScanState]:
    """Scan the tokens of this rank, send the memory they leave, and add what came before."""
    if tokens.beta is not None:
        return _scan_by_matrices(
            tokens, start, peers, spoiled, lambda some, memory: chunked(some, memory, chunk)
        )
    out, memory = chunked(tokens, torch.zeros_like(start), chunk)
    if spoiled is not None:  # a memory with a NaN is sent as NaN
        out, memory = spoiled.fill(out, memory)
    passage = tokens.total(tokens.log_decay)  # [b, h, 1 or d]
    found, states = _states(memory, passage, peers)
    # A rank that reads nothing of the others still sends gradients, which they wait for.
    joined = found[..., :0].sum()
    entering = reduce(_after, states[: peers.rank], start)
    last = reduce(_after, states, start)
    decay = tokens.log_decay
    since = None if decay is None else _since_start(decay, tokens)
    read = (tokens.q if since is None else tokens.q * since) @ entering  # [b, h, n, e]
    if since is not None:  # nothing before a reset is read, not even a NaN
        read = read.masked_fill((since == 0).all(-1, keepdim=True), 0.0)
    out = out + read + joined
    total = torch.stack([x.log_decay for x in states if x.log_decay is not None]).sum(0)
    return out, ScanState(last, total)


def _scan_by_matrices(
    tokens: ScanTokens, start: Tensor, peers: Peers, spoiled: Spoiled | None,
    scan: Callable[[ScanTokens, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, ScanState]:  # fmt: skip
    """Scan where older memories pass through a matrix [b, h, d, d].

    `scan(tokens, memory)` returns the output and the last memory. Its result from the identity,
    with nothing written, is the matrix.
    """
    b, h, d, _ = tokens.memory_shape
    out, memory = scan(tokens, torch.zeros_like(start))
    if spoiled is not None:  # a memory with a NaN is sent as NaN
        out, memory = spoiled.fill(out, memory)
    unit = torch.eye(d, dtype=start.dtype, device=start.device).expand(b, h, d, d)
    passage = scan(replace(tokens, v=start.new_zeros(b, h, tokens.q.shape[2], d)), unit)[1]
    found, states = _states(memory, passage, peers)
    entering = reduce(_after, states[: peers.rank], start)
    last = reduce(_after, states, start)
    out = scan(tokens, entering)[0]
    if spoiled is not None:
        (out,) = spoiled.fill(out)
    # A rank that reads nothing of the others still sends gradients, which they wait for.
    return out + found[..., :0].sum(), ScanState(last)


def _states(memory: Tensor, passage: Tensor, peers: Peers) -> tuple[Tensor, list[ScanState]]:
    """Exchange the memory of every rank's tokens, and how older memories pass through them."""
    d, e = memory.shape[-2:]
    packed = torch.cat((memory.flatten(2), passage.flatten(2)), -1)
    found = _Gather.apply(packed, peers)  # type: ignore[no-untyped-call]
    states = []
    for one in found.unbind(0):
        own, rest = one[..., : d * e].unflatten(-1, (d, e)), one[..., d * e :]
        if passage.dim() == 4:
            states.append(ScanState(own, transition=rest.unflatten(-1, (d, d))))
        else:
            states.append(ScanState(own, rest))
    return found, states


def _after(memory: Tensor, segment: ScanState) -> Tensor:
    """Pass a memory through a segment; a forgotten entry may be NaN."""
    if segment.log_decay is not None:
        memory = memory.masked_fill((segment.log_decay == -torch.inf)[..., None], 0.0)
    return ScanState(memory).then(segment).memory


def _since_start(decay: Tensor, tokens: ScanTokens) -> Tensor:
    """Return the decay from before this rank's tokens to each of them, [b, h, n, 1 or d]."""
    b, h, n, _ = tokens.q.shape
    return decay.expand(b, h, n, decay.shape[-1]).cumsum(2).exp()


class _Gather(Function):
    """Gather the states of all ranks, [world, ...]; gradients are summed by their owners."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers, ctx.call = peers, peers.calls
        return peers.everyone(x, "gathering states")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        peers, grad = ctx.peers, grads[0].contiguous()
        others = [r for r in range(peers.world) if r != peers.rank]
        found = torch.zeros_like(grad)
        found[peers.rank] = grad[peers.rank]
        what = "the backward of gathering states"
        sends, gets = {r: grad[r] for r in others}, {r: found[r] for r in others}
        peers.exchange(sends, gets, what, lane=1, call=ctx.call).wait()
        return found.sum(0), None
