"""The fast form of a scan: chunks as matrix products, and a short loop from chunk to chunk.

Every update kind turns the memory that enters a chunk into `passage(S) + added`, so all of them
share three strides: summarize each chunk, carry the memory over the summaries, read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regard.core.scan.decays import ChunkDecay, times
from regard.core.scan.scan_inputs import ScanTokens

_PIECE = 1 << 19
"""How many score entries are alive at once on a CPU: 2 MiB of float32 stay in its cache."""


def chunked(tokens: ScanTokens, memory: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Scan chunk by chunk: `out [b, h, n, e]` and the last memory `[b, h, d, e]`, in O(n).

    Tokens beyond the last whole chunk are scanned as one shorter chunk, so nothing is padded.
    """
    n = tokens.q.shape[2]
    whole = n - n % chunk
    if whole == 0:
        return _whole_chunks(tokens, memory, n)
    if whole == n:
        return _whole_chunks(tokens, memory, chunk)
    head, memory = _whole_chunks(tokens.between(0, whole), memory, chunk)
    tail, memory = _whole_chunks(tokens.between(whole, n), memory, n - whole)
    return torch.cat((head, tail), dim=2), memory


def _whole_chunks(tokens: ScanTokens, memory: Tensor, c: int) -> tuple[Tensor, Tensor]:
    b, h, n, d = tokens.q.shape
    e = tokens.v.shape[-1]
    q, k, v = (x.reshape(b * h, n // c, c, x.shape[-1]) for x in (tokens.q, tokens.k, tokens.v))
    rate = chunk_rate(tokens.log_decay, tokens, c)
    start = memory.reshape(b * h, d, e)
    if tokens.beta is None:
        reads, last = _additive(q, k, v, rate, start)
    else:
        beta = tokens.beta.reshape(b * h, n // c, c, 1)
        reads, last = _delta(q, k, v, rate, beta, start)
    out = torch.cat([x.reshape(-1, e) for x in reads])
    return out.view(b, h, n, e), last.view(b, h, d, e)


def chunk_rate(rate: Tensor | None, tokens: ScanTokens, c: int) -> Tensor | None:
    """Lay a rate `[b|1, h|1, n|1, d|1]` out in chunks: `[b h, t|1, c, d|1]`."""
    if rate is None:
        return None
    b, h, n, _ = tokens.q.shape
    length, chunks = (c, 1) if rate.shape[2] == 1 else (n, n // c)
    return rate.expand(b, h, length, -1).reshape(b * h, chunks, c, rate.shape[3])


def _additive(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, start: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Scan `S = decay S + k v^T`. Summary of a chunk: `added = (decay k)^T v`."""
    decays = [ChunkDecay(decay) for _, decay in pieces(k, rate)]
    added = [
        _flat(times(keys, decay.leaving).mT @ values)
        for (keys, values), decay in zip(pieces(k, v), decays, strict=True)
    ]
    sums = torch.cat(added).view(*k.shape[:2], k.shape[-1], v.shape[-1])
    before, last = _carry_decayed(sums, ChunkDecay(rate).passing, start)
    reads = []
    for decay, (queries, keys, values, memory) in zip(decays, pieces(q, k, v, before), strict=True):
        entered = times(queries, decay.entering)
        inside = decay.products(queries, entered, keys, itself=True) @ values
        reads.append(torch.baddbmm(_flat(inside), _flat(entered), _flat(memory)))
    return reads, last


def _delta(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None, beta: Tensor, start: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Scan `S = decay S + k u^T`, `u = beta (v - k decay S)`.

    Within a chunk every `u` depends on the earlier ones through one unit triangular system,
    which is solved for both of its right sides at once: `u = fresh - known S`, where `S` enters
    the chunk (the WY form). So a chunk passes `S` through a matrix, `decay - (decay k)^T known`.
    """
    d, e = k.shape[-1], v.shape[-1]
    fresh, known, added, passages = [], [], [], []
    decays = [ChunkDecay(decay) for _, decay in pieces(k, rate)]
    for decay, (keys, values, strength) in zip(decays, pieces(k, v, beta), strict=True):
        entered = times(keys, decay.entering)
        system = strength * decay.products(keys, entered, keys, itself=False)
        sides = strength * torch.cat((values, entered), dim=-1)
        solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
        writes, erases = solved.split((e, d), dim=-1)
        left = times(keys, decay.leaving).mT
        decayed = torch.eye(d, dtype=k.dtype, device=k.device)
        passages.append(_flat(times(decayed, decay.passing) - left @ erases))
        added.append(_flat(left @ writes))
        fresh.append(_flat(writes))
        known.append(_flat(erases))
    before, last = _carry_mapped(
        torch.cat(added).view(*k.shape[:2], d, e),
        torch.cat(passages).view(*k.shape[:2], d, d),
        start,
    )
    reads = []
    for i, (queries, keys, memory) in enumerate(pieces(q, k, before)):
        decay, memory = decays[i], _flat(memory)
        u = torch.baddbmm(fresh[i], known[i], memory, alpha=-1)
        entered = times(queries, decay.entering)
        inside = _flat(decay.products(queries, entered, keys, itself=True)) @ u
        reads.append(torch.baddbmm(inside, _flat(entered), memory))
    return reads, last


def _carry_decayed(added: Tensor, factor: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
    """Carry `S = factor S + added` over chunks: the memory before each, and the last.

    `added [rows, t, d, e]`, `factor` `None` or `[rows, t|1, d|1, 1]`, `start [rows, d, e]`.
    """
    memory, before = start, []
    chunks = added.shape[1]
    factors = None if factor is None else factor.expand(-1, chunks, -1, -1).unbind(1)
    for t, new in enumerate(added.unbind(1)):
        before.append(memory)
        memory = memory + new if factors is None else torch.addcmul(new, memory, factors[t])
    return torch.stack(before, dim=1), memory


def _carry_mapped(added: Tensor, passages: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Carry `S = passage S + added` over chunks; `passages [rows, t, d, d]`."""
    memory, before = start, []
    for new, passage in zip(added.unbind(1), passages.unbind(1), strict=True):
        before.append(memory)
        memory = torch.baddbmm(new, passage, memory)
    return torch.stack(before, dim=1), memory


def pieces(*tensors: Tensor | None) -> Iterator[Any]:
    """Cut `[rows, t, c, ...]` tensors alike into pieces small enough for a CPU's cache.

    Cuts along `t` within one row, or takes whole rows together, so that a piece is a view whose
    first two dimensions flatten. A tensor with `t = 1` goes with every cut; so does `None`.
    `split` and not slices: the gradient of a slice is as large as the whole.
    """
    first = tensors[0]
    assert first is not None, "the first tensor gives the sizes"
    rows, t, c = first.shape[:3]
    at_once = max(1, _PIECE // (c * c)) if first.device.type == "cpu" else rows * t
    many, chunks = max(1, at_once // t), min(t, at_once)
    cuts = len(range(0, t, chunks))

    def cut(x: Tensor | None) -> list[Tensor] | list[None]:
        if x is None:
            return [None] * (len(range(0, rows, many)) * cuts)
        parts = torch.split(x, many, dim=0)
        if x.shape[1] == 1:
            return [part for part in parts for _ in range(cuts)]
        return [piece for part in parts for piece in torch.split(part, chunks, dim=1)]

    return zip(*(cut(x) for x in tensors), strict=True)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)
