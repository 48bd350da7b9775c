"""Scans whose updates have momentum, as in memories that learn while they read.

`M_t = momentum_t M_{t-1} + k_t u_t^T`, `S_t = decay_t S_{t-1} + M_t`, `o_t = q_t S_t`, with
`u = v`, or for the delta rule `u = beta (v - k S_{t-1})`: a gradient step on `|k S - v|^2 / 2`,
taken at the memory before it decays (as in `titans`); the gated delta rule decays it first.
Rates are per head or per token here, and not per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.scan.chunked_scan import chunk_rate, pieces
from regard.core.scan.decays import kept
from regard.core.scan.recurrent_scan import at
from regard.core.scan.scan_inputs import ScanTokens

Pair = tuple[Tensor, Tensor]
"""A memory and its momentum, each `[b, h, d, e]`."""


def momentum_step(
    pair: Pair, q: Tensor, k: Tensor, v: Tensor, log_momentum: Tensor,
    log_decay: Tensor | None = None, beta: Tensor | None = None,
) -> tuple[Tensor, Pair]:  # fmt: skip
    """Write with momentum and read once.

    `q`, `k` `[b, h, d]`; `v [b, h, e]`; the rates `[b, h, 1]`; `beta [b, h]`.

    >>> one, half = torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.5)
    >>> zero = torch.zeros(1, 1, 1, 1)
    >>> out, pair = momentum_step((zero, zero), one, one, one, half.log())
    >>> out, pair = momentum_step(pair, one, one, one, half.log())
    >>> out.item()  # 1, and then 1 + (0.5 + 1)
    2.5
    """
    memory, momentum = pair
    if beta is not None:
        v = beta.unsqueeze(-1) * (v - torch.einsum("bhd,bhde->bhe", k, memory))
    written = torch.einsum("bhd,bhe->bhde", k, v)
    momentum = log_momentum.exp().unsqueeze(-1) * momentum + written
    if log_decay is not None:
        memory = log_decay.exp().unsqueeze(-1) * memory
    memory = memory + momentum
    return torch.einsum("bhd,bhde->bhe", q, memory), (memory, momentum)


def momentum_recurrent(tokens: ScanTokens, pair: Pair) -> tuple[Tensor, Pair]:
    """Run every token through `momentum_step`: `out [b, h, n, e]` and the last pair."""
    outs = []
    for t in range(tokens.q.shape[2]):
        rate = at(tokens.log_momentum, t)
        assert rate is not None, "the door demands log_momentum"
        out, pair = momentum_step(
            pair, tokens.q[:, :, t], tokens.k[:, :, t], tokens.v[:, :, t], rate,
            at(tokens.log_decay, t), None if tokens.beta is None else tokens.beta[:, :, t],
        )  # fmt: skip
        outs.append(out)
    return torch.stack(outs, dim=2), pair


def momentum_chunked(tokens: ScanTokens, pair: Pair, chunk: int = 64) -> tuple[Tensor, Pair]:
    """Scan chunk by chunk: `out [b, h, n, e]` and the last pair, in O(n).

    A chunk as long as the sequence is the parallel, quadratic form.
    """
    n = tokens.q.shape[2]
    whole = n - n % chunk
    if whole in (0, n):
        return _whole_chunks(tokens, pair, min(chunk, n))
    head, pair = _whole_chunks(tokens.between(0, whole), pair, chunk)
    tail, pair = _whole_chunks(tokens.between(whole, n), pair, n - whole)
    return torch.cat((head, tail), dim=2), pair


def momentum_passage(tokens: ScanTokens) -> Tensor:
    """Return how a (memory, momentum) pair passes through additive tokens: `[b, h, 2, 2]`.

    Found by scanning: what tokens that write nothing make of the pairs (1, 0) and (0, 1).
    """
    b, h, n, _ = tokens.q.shape
    one = tokens.q.new_ones(b, h, n, 1)
    silent = ScanTokens(
        one, one, one.new_zeros(b, h, n, 2), tokens.log_decay, tokens.log_momentum, None,
        tokens.dtype,
    )  # fmt: skip
    unit = torch.eye(2, dtype=one.dtype, device=one.device).expand(b, h, 2, 2)
    _, (memory, momentum) = momentum_chunked(silent, (unit[:, :, :1], unit[:, :, 1:]))
    return torch.cat((memory, momentum), dim=2)


def _whole_chunks(tokens: ScanTokens, pair: Pair, c: int) -> tuple[Tensor, Pair]:
    b, h, n, d = tokens.q.shape
    e = tokens.v.shape[-1]
    q, k, v = (x.reshape(b * h, n // c, c, x.shape[-1]) for x in (tokens.q, tokens.k, tokens.v))
    none = q.new_zeros(1, 1, 1, 1)
    decay = chunk_rate(none if tokens.log_decay is None else tokens.log_decay, tokens, c)
    momentum = chunk_rate(tokens.log_momentum, tokens, c)
    beta = None if tokens.beta is None else tokens.beta.reshape(b * h, n // c, c, 1)
    start = torch.cat([x.reshape(b * h, d, e) for x in pair], dim=1)  # [b h, 2 d, e]
    reads, last = _scan(q, k, v, decay, momentum, beta, start)
    out = torch.cat([x.reshape(-1, e) for x in reads]).view(b, h, n, e)
    memory, speed = last.view(b, h, 2, d, e).unbind(2)
    return out, (memory, speed)


def _scan(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, momentum: Tensor | None,
    beta: Tensor | None, start: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Summarize chunks, carry the stacked pair `[S; M]` over them, and read.

    All is written for the pair as one memory of `2 d` channels, with these weights in a chunk:
    how a write at `j` shows in the memory (`shown`) and the momentum (`moving`) at `i`, and how
    the pair that enters shows in the memory at `i` (`entered`: for S, and for M).
    """
    d = k.shape[-1]
    eye = torch.eye(d, dtype=k.dtype, device=k.device)
    fresh: list[Tensor] = []
    known: list[Tensor] = []
    added, passages = [], []
    for keys, values, strength, s_rate, m_rate in pieces(k, v, beta, decay, momentum):
        shown, moving, entered, faded = _weights(s_rate, m_rate)
        ends = torch.cat((keys * shown[..., -1, :, None], keys * moving[..., -1, :, None]), dim=-1)
        corner = torch.cat((entered[..., -1, :], torch.zeros_like(faded), faded), dim=-1)
        blocks = torch.einsum("rtxy,ij->rtxiyj", torch.unflatten(corner, -1, (2, 2)), eye)
        passage = blocks.flatten(4, 5).flatten(2, 3)
        if strength is None:
            fresh.append(values)
        else:
            before = torch.cat((torch.ones_like(faded), torch.zeros_like(faded)), dim=-1)
            earlier = torch.cat((before.unsqueeze(-2), entered[..., :-1, :]), dim=-2)
            system = strength * (keys @ keys.mT) * _shift(shown)
            asked = torch.cat((keys * earlier[..., :1], keys * earlier[..., 1:]), dim=-1)
            sides = strength * torch.cat((values, asked), dim=-1)
            solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
            fresh.append(solved[..., : v.shape[-1]])
            known.append(solved[..., v.shape[-1] :])
            passage = passage - ends.mT @ known[-1]
        added.append((ends.mT @ fresh[-1]).flatten(0, 1))
        passages.append(passage.expand(*keys.shape[:2], -1, -1).flatten(0, 1))
    before, last = _carry(torch.cat(added), torch.cat(passages), start, k.shape[1])
    reads = []
    for i, (queries, keys, s_rate, m_rate, pair) in enumerate(
        pieces(q, k, decay, momentum, before)
    ):
        shown, _, entered, _ = _weights(s_rate, m_rate)
        u = fresh[i] - known[i] @ pair if known else fresh[i]
        asked = torch.cat((queries * entered[..., :1], queries * entered[..., 1:]), dim=-1)
        reads.append(((queries @ keys.mT) * shown) @ u + asked @ pair)
    return reads, last


def _weights(decay: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `shown`, `moving` `[r, t, c, c]`, `entered [r, t, c, 2]` and `faded [r, t, 1]`.

    A write first moves for some tokens (momentum) and from then on stays (decay): summed over
    the token where it stops moving, that is the product of the two triangles.
    """
    staying, moving = kept(decay), kept(momentum)
    moved = momentum.cumsum(-2).exp()
    stayed = decay.cumsum(-2).exp()
    entered = torch.cat((stayed.expand_as(staying @ moved), staying @ moved), dim=-1)
    return staying @ moving, moving, entered, moved[..., -1, :]


def _shift(shown: Tensor) -> Tensor:
    """Move the weights one token down: what each token sees of the memory before its own step."""
    return torch.cat((torch.zeros_like(shown[..., :1, :]), shown[..., :-1, :]), dim=-2)


def _carry(added: Tensor, passages: Tensor, start: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """Carry `P = passage P + added` over chunks: the pairs before each, and the last."""
    pair, before = start, []
    added = torch.unflatten(added, 0, (-1, chunks))
    passages = torch.unflatten(passages, 0, (-1, chunks))
    for new, passage in zip(added.unbind(1), passages.unbind(1), strict=True):
        before.append(pair)
        pair = torch.baddbmm(new, passage, pair)
    return torch.stack(before, dim=1), pair
