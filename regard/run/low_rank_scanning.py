"""The door to scans by a diagonal and a rank-one map: check, choose the form, run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.heads import expand_heads
from regard.core.scan import (
    Rate,
    ScanState,
    ScanTokens,
    check_chunk,
    contain,
    initial_memory,
    prepare,
)
from regard.core.scan.containment import Spoiled
from regard.core.scan.diagonal_plus_rank_one import low_rank_chunked, low_rank_recurrent

FORMS = ("recurrent", "parallel", "chunked")


def scan_low_rank(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    log_decay: Rate | None = None,
    state: ScanState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
    form: str | None = None,
    chunk: int = 16,
) -> tuple[Tensor, ScanState]:
    """Scan: `S_t = (diag(decay_t) + left_t right_t^T) S_{t-1} + k_t v_t^T`, `o_t = scale q_t S_t`.

    `right_t` reads the memory before it decays, and `left_t` says where what was read is written:
    `left = -beta k`, `right = decay k` is the delta rule, and RWKV-7 has a direction for each.

    - `q`, `left`, `right` `[b, h, n, d]`, `k [b, g, n, d]`, `v [b, g, n, e]`, with `g` dividing
      `h`; `left` and `right` may have `g` heads
    - `log_decay`, `state`, `keep`, `reset`, `scale`: as in `regard.scan`
    - `form`: `"recurrent"` (the meaning), `"parallel"` (one chunk) or `"chunked"` (the default);
      a chunk of c tokens holds c^2 d numbers for each head

    Returns `out [b, h, n, e]` in the dtype of `v`, and the state.

    >>> x, zero = torch.ones(1, 1, 3, 1), torch.zeros(1, 1, 3, 1)
    >>> scan_low_rank(x, x, x, zero, zero)[0].flatten().tolist()
    [1.0, 2.0, 3.0]
    >>> scan_low_rank(x, x, x, -x, x)[0].flatten().tolist()  # each write replaces what was there
    [1.0, 1.0, 1.0]
    """
    chunk = check_chunk(chunk)
    if form is not None and form not in FORMS:
        want = f"None or one of {', '.join(FORMS)}"
        fail(ValueRangeError, "form", repr(form), want, "leave it out")

    def run(
        tokens: ScanTokens, left: Tensor, right: Tensor, start: Tensor, spoiled: Spoiled | None
    ) -> tuple[Tensor, ScanState]:
        n = q.shape[2]
        if form == "recurrent" or (form is None and n == 1):
            out, memory = low_rank_recurrent(tokens, left, right, start)
        else:
            whole = n if form == "parallel" else chunk
            out, memory = low_rank_chunked(tokens, left, right, start, whole)
        if spoiled is not None:
            out, memory = spoiled.fill(out, memory)
        return out, ScanState(memory, None)

    return scan_low_rank_with(
        run, q, k, v, left, right, log_decay=log_decay, state=state, keep=keep, reset=reset,
        scale=scale,
    )  # fmt: skip


def scan_low_rank_with(
    run: Callable[[ScanTokens, Tensor, Tensor, Tensor, Spoiled | None], tuple[Tensor, ScanState]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    log_decay: Rate | None = None,
    state: ScanState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, ScanState]:
    """Do all of a low-rank scan but the scan: arguments and results are those of `scan_low_rank`.

    `run(tokens, left, right, memory, spoiled)` scans tokens that hold nothing broken from a memory
    [b, h, d, e]: it returns the output and the state after them, NaN where `spoiled` says.
    """
    tokens = prepare(q, k, v, log_decay=log_decay, keep=keep, reset=reset, scale=scale)
    left, right = (_directions(name, x, tokens.k) for name, x in (("left", left), ("right", right)))
    for mask, gone in ((keep, False), (reset, True)):
        if mask is not None:  # padding leaves the memory, and no text reads another's
            right = right.masked_fill((mask if gone else ~mask)[:, None, :, None], 0.0)
    start = initial_memory(state, tokens)
    with without_autocast(q.device):
        d = tokens.k.shape[3]
        joined = replace(tokens, k=torch.cat((tokens.k, left, right), -1))
        joined, (start,), spoiled = contain(joined, (start,), keep=keep, reset=reset)
        k_all, left, right = joined.k.split(d, -1)
        out, last = run(replace(joined, k=k_all), left, right, start, spoiled)
    return out.to(tokens.dtype), last


def _directions(name: str, x: Tensor, k: Tensor) -> Tensor:
    """Bring a direction to [b, h, n, d], as the keys are."""
    b, h, n, d = k.shape
    fits = isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] > 0 and h % x.shape[1] == 0
    if not fits or (x.shape[0], *x.shape[2:]) != (b, n, d):
        want = f"[{b}, {h}, {n}, {d}], as the keys"
        fail(ShapeError, name, shape_of(x), want, "give every token its directions")
    return expand_heads(x.to(k.dtype), h)


__all__ = ["FORMS", "scan_low_rank", "scan_low_rank_with"]
