"""The doors to scans: check, choose the form, run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.errors import CapabilityError, ExecutorError, ValueRangeError, fail
from regard.core.scan import (
    MomentumState,
    Rate,
    ScanState,
    ScanTokens,
    check_chunk,
    chunked,
    contain,
    divided,
    initial_memory,
    initial_pair,
    momentum_chunked,
    momentum_passage,
    momentum_recurrent,
    parallel,
    prepare,
    recurrent,
    with_ones,
)
from regard.core.scan.containment import Spoiled
from regard.run import scan_fla

FORMS = ("recurrent", "parallel", "chunked", "fla")


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Rate | None = None,
    beta: Rate | None = None,
    state: ScanState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
    normalize: float | None = None,
    form: str | None = None,
    chunk: int = 64,
) -> tuple[Tensor, ScanState]:
    """Scan: `S_t = decay_t S_{t-1} + k_t u_t^T`, `o_t = scale q_t S_t`.

    Without `beta`, `u = v` (linear attention, retention, gated linear attention). With it, the
    delta rule: `u = beta (v - k decay S)`, which writes only what the memory does not return yet.

    - `q [b, h, n, d]`, `k [b, g, n, d]`, `v [b, g, n, e]`, with `g` dividing `h`
    - `log_decay`: logarithm of the decay, so at most 0 (`-inf` forgets all): a number, `[h]`,
      `[h, d]`, `[b, h, n]` or `[b, h, n, d]`; `g` may stand for `h`
    - `beta`: a number, `[h]` or `[b, h, n]`
    - `state`: what an earlier call returned, to go on from it
    - `keep [b, n]`: false at padding, which then leaves the state as it is
    - `reset [b, n]`: true where the state is emptied before the token (see `starts` for packed
      documents)
    - `normalize`: divide by the running sum of weights `q_t z_t`, held at least this far from 0;
      the memory then has one more value channel, which is that sum
    - `form`: `"recurrent"` (the meaning), `"parallel"` (O(n^2)), `"chunked"` (the default, O(n)) or
      `"fla"` (the kernels of flash-linear-attention); `chunk` is the tokens per chunk

    A token whose k, v or beta holds a NaN or an infinity gives NaN from itself on, up to the next
    reset, and changes nothing before.

    Half precision is accumulated in float32, and the state stays there. Returns
    `out [b, h, n, e]` in the dtype of `v`, and the state.

    >>> x = torch.ones(1, 1, 4, 1)
    >>> out, state = scan(x, x, x, log_decay=-float("inf"), normalize=None)
    >>> out.flatten().tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> out, state = scan(x, x, x)
    >>> out.flatten().tolist(), scan(x, x, x, state=state)[0].flatten().tolist()
    ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    """
    chunk, form = check_chunk(chunk), _form(form, FORMS)

    def run(tokens: ScanTokens, start: Tensor, spoiled: Spoiled | None) -> tuple[Tensor, ScanState]:
        out, memory = _scan_by(form, tokens.q.shape[2], chunk)(tokens, start)
        if spoiled is not None:
            out, memory = spoiled.fill(out, memory)
        return out, ScanState(memory, None if beta is not None else tokens.total(tokens.log_decay))

    return scan_with(
        run, q, k, v, log_decay=log_decay, beta=beta, state=state, keep=keep, reset=reset,
        scale=scale, normalize=normalize,
    )  # fmt: skip


def scan_with(
    run: Callable[[ScanTokens, Tensor, Spoiled | None], tuple[Tensor, ScanState]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Rate | None = None,
    beta: Rate | None = None,
    state: ScanState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
    normalize: float | None = None,
) -> tuple[Tensor, ScanState]:
    """Do all of a scan but the scan: arguments and results are those of `scan`.

    `run(tokens, memory, spoiled)` scans tokens that hold nothing broken from a memory
    [b, h, d, e]: it returns the output and the state after them, NaN where `spoiled` says.
    """
    bad = not isinstance(v, Tensor) or v.ndim != 4  # for `prepare` to say so
    values = v if bad or normalize is None else with_ones(v)
    tokens = prepare(
        q, k, values, log_decay=log_decay, beta=beta, keep=keep, reset=reset, scale=scale
    )
    start = initial_memory(state, tokens)
    with without_autocast(q.device):
        tokens, (start,), spoiled = contain(tokens, (start,), keep=keep, reset=reset)
        out, last = run(tokens, start, spoiled)
        if normalize is not None:
            out = divided(out, normalize)
    if state is not None:
        # The new state says how older memories pass only where the earlier one does.
        early, late = state.log_decay, last.log_decay
        last = ScanState(last.memory, None if early is None or late is None else early + late)
    return out.to(tokens.dtype), last


def scan_momentum(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_momentum: Rate,
    log_decay: Rate | None = None,
    beta: Rate | None = None,
    state: MomentumState | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    scale: float = 1.0,
    form: str | None = None,
    chunk: int = 64,
) -> tuple[Tensor, MomentumState]:
    """Scan with momentum: `M_t = momentum_t M_{t-1} + k_t u_t^T`, `S_t = decay_t S_{t-1} + M_t`.

    `o_t = scale q_t S_t`. Without `beta`, `u = v`; with it, `u = beta (v - k S_{t-1})`, a gradient
    step at the memory before it decays. Arguments as in `scan`; `log_momentum` and `log_decay`
    are a number, `[h]` or `[b, h, n]`. The forms are `"recurrent"`, `"parallel"` and `"chunked"`.

    >>> x = torch.ones(1, 1, 3, 1)
    >>> out, state = scan_momentum(x, x, x, log_momentum=-float("inf"))
    >>> out.flatten().tolist()  # no momentum: a plain scan
    [1.0, 2.0, 3.0]
    """
    chunk, form = check_chunk(chunk), _form(form, FORMS[:3])
    if log_momentum is None:
        fail(ValueRangeError, "log_momentum", None, "the log of a momentum", "use scan without one")
    if beta is not None and reset is not None:
        fail(
            CapabilityError, "reset", "documents in a row, with beta",
            "one of the two: a step corrects what the memory before it, another text's, returned",
            "scan documents in rows of their own",
        )  # fmt: skip
    tokens = prepare(
        q, k, v, log_decay=log_decay, log_momentum=log_momentum, beta=beta, keep=keep,
        reset=reset, scale=scale,
    )  # fmt: skip
    pair = initial_pair(state, tokens)
    n = q.shape[2]
    with without_autocast(q.device):
        tokens, (memory, speed), spoiled = contain(tokens, pair, keep=keep, reset=reset)
        if form == "recurrent" or (form is None and n == 1):
            out, last = momentum_recurrent(tokens, (memory, speed))
        else:
            whole = n if form == "parallel" else chunk
            out, last = momentum_chunked(tokens, (memory, speed), whole)
        if spoiled is not None:
            out, *held = spoiled.fill(out, *last)
            last = (held[0], held[1])
        passage = None if beta is not None else momentum_passage(tokens)
    if state is not None:
        earlier = state.transition
        passage = None if passage is None or earlier is None else passage @ earlier
    return out.to(tokens.dtype), MomentumState(*last, passage)


def _form(form: str | None, offered: tuple[str, ...]) -> str | None:
    if form is not None and form not in offered:
        want = f"None or one of {', '.join(offered)}"
        fail(ValueRangeError, "form", repr(form), want, "leave it out")
    return form


def _scan_by(
    form: str | None, n: int, chunk: int
) -> Callable[[ScanTokens, Tensor], tuple[Tensor, Tensor]]:
    """Choose how to scan: one token directly, more of them in chunks, or as was asked."""
    if form == "recurrent" or (form is None and n == 1):
        return recurrent
    if form == "parallel":
        return parallel
    if form == "fla":
        return _fla
    return lambda tokens, memory: chunked(tokens, memory, chunk)


def _fla(tokens: ScanTokens, memory: Tensor) -> tuple[Tensor, Tensor]:
    reason = scan_fla.why_not(tokens)
    if reason is not None:
        fail(ExecutorError, "form", "'fla'", f"a call it can run, but {reason}", "use form=None")
    return scan_fla.scan(tokens, memory)
