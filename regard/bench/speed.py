"""Measure how seconds and bytes of layers, executors and peers grow with the number of tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regard.bench.measuring import Largest, seconds, slope
from regard.bench.specs import make_layer, read_spec
from regard.bench.statistics import efficiency_length
from regard.core.errors import RuleError, fail
from regard.core.support import Causal
from regard.layers.registry import get
from regard.run.api import attend

WHATS = ("forward", "backward", "decode")
LENGTHS = (128, 256, 512, 1024, 2048)
# Stop at the length where one call takes longer than this many seconds.
LIMIT = 2.0
DECODED = 16


@dataclass(frozen=True)
class Measure:
    """One measurement of `what` ("forward", "backward" or "decode") at `n` tokens.

    `seconds` are of one call; of "decode", of one further token after n. `bytes` are those of the
    largest tensor on a CPU (a count), of the peak on a GPU; of "decode", what the memory keeps.
    """

    who: str
    what: str
    n: int
    seconds: float
    bytes: int


Call = Callable[[Tensor], Any]


def measure(
    layers: Sequence[str], *, lengths: Sequence[int] = LENGTHS, whats: Sequence[str] = WHATS,
    executors: Sequence[str] = (), peers: bool = False, dim: int = 256, heads: int = 4,
    rounds: int = 3, device: str = "cpu", told: Callable[[str], None] = lambda said: None,
) -> list[Measure]:  # fmt: skip
    """Measure causal layers, and beside them `executors` of plain attention, and peers.

    Each call runs once before it is timed; the least of `rounds` times is kept.

    >>> [row.n for row in measure(["mqa"], lengths=[16, 32], whats=["forward"], rounds=1)]
    [16, 32]
    """
    for what in whats:
        if what not in WHATS:
            fail(RuleError, "whats", repr(what), f"some of {', '.join(WHATS)}", "pass forward")
    torch.manual_seed(0)
    calls: dict[str, Any] = {}
    for said in layers:
        kind = get(read_spec(said)[0])
        pattern = "cs" if kind.can.causal else "ns"
        calls[said] = make_layer(said, pattern, dim, heads, max(lengths)).to(device).eval()
    for name in executors:
        calls[f"executor {name}"] = _executor(name, heads)
    if peers:
        calls |= _peers(dim, heads, device)
    rows, slow = [], set[tuple[str, str]]()
    for n in sorted(lengths):
        x = torch.randn(1, n, dim, device=device)
        for what in whats:
            for who, call in calls.items():
                if (who, what) in slow or not _can(call, what):
                    continue
                told(f"{who}, {what}, {n:,} tokens")
                kept = _bytes(call, what, x)  # which also warms what is compiled or cached
                # The minimum: other load on the machine can only add time.
                took = min(_timed(call, what, x) for _ in range(rounds))
                rows.append(Measure(who, what, n, took, kept))
                if took * (DECODED if what == "decode" else 1) > LIMIT:
                    slow.add((who, what))
    return rows


def exponents(rows: Sequence[Measure]) -> list[dict[str, Any]]:
    """Fit growth exponents of seconds and bytes: log-log slopes over the longest lengths."""
    found = []
    for who, what in dict.fromkeys((r.who, r.what) for r in rows):
        mine = [r for r in rows if (r.who, r.what) == (who, what)][-4:]
        n = [r.n for r in mine]
        found.append({
            "who": who, "what": what, "longest": n[-1], "seconds": mine[-1].seconds,
            "bytes": mine[-1].bytes,
            "time exponent": round(slope(n, [r.seconds for r in mine]), 2) if len(n) > 1 else None,
            "memory exponent": round(slope(n, [max(r.bytes, 1) for r in mine]), 2)
            if len(n) > 1 else None,
        })  # fmt: skip
    return found


def pays_from(rows: Sequence[Measure], who: str, what: str) -> str:
    """Return from which length on a layer is faster than mha, as measured or extrapolated.

    >>> slow, fast = [9e-3, 1e-2, 2e-2], [1e-3, 4e-3, 1.6e-2]
    >>> rows = [Measure(who, "forward", n, x, 1) for who, times in (("a", slow), ("mha", fast))
    ...         for n, x in zip((64, 128, 256), times)]
    >>> pays_from(rows, "a", "forward")
    'about 342 tokens, by the fit; slower up to 256'
    """
    mine = {r.n: r.seconds for r in rows if (r.who, r.what) == (who, what)}
    plain = {r.n: r.seconds for r in rows if (r.who, r.what) == ("mha", what)}
    shared = sorted(set(mine) & set(plain))
    if who == "mha" or len(shared) < 3 or what == "decode":
        return ""
    ahead = [k for k in shared if mine[k] < plain[k]]
    if len(ahead) == len(shared):
        return f"every length measured ({shared[0]:,} to {shared[-1]:,})"
    behind = max(k for k in shared if k not in ahead)
    if behind < shared[-1]:  # measured beats fitted
        return f"{min(k for k in ahead if k > behind):,} tokens, as measured"
    n = efficiency_length(shared, [mine[k] for k in shared], [plain[k] for k in shared])
    if n is None or n <= shared[-1]:
        some = f"; faster at {', '.join(f'{k:,}' for k in ahead)}" if ahead else ""
        return f"not up to {shared[-1]:,} tokens{some}"
    return f"about {n:,.0f} tokens, by the fit; slower up to {shared[-1]:,}"


def as_rows(rows: Sequence[Measure]) -> list[dict[str, Any]]:
    """Return measurements as JSON and tables hold them."""
    return [asdict(row) for row in rows]


def _timed(call: Any, what: str, x: Tensor) -> float:
    if what == "forward":
        with torch.no_grad():
            return seconds(lambda: call(x))
    if what == "backward":
        leaf = x.clone().requires_grad_()
        return seconds(lambda: _first(call(leaf)).sum().backward())
    one = torch.randn(1, 1, x.shape[2], device=x.device)
    with torch.no_grad():
        memory = call.memory()
        call(x, memory=memory)
        return seconds(lambda: call(one, memory=memory), DECODED)


def _bytes(call: Any, what: str, x: Tensor) -> int:
    if what == "decode":
        with torch.no_grad():
            memory = call.memory()
            call(x, memory=memory)
        size: int = memory.nbytes
        return size
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        _timed(call, what, x)
        peak: int = torch.cuda.max_memory_allocated()
        return peak
    largest = Largest()
    with largest:
        _timed(call, what, x)
    return largest.bytes


def _can(call: Any, what: str) -> bool:
    if what != "decode":
        return True
    can = getattr(call, "can", None)
    return can is not None and can.decode and call.causal


def _executor(name: str, heads: int) -> Call:
    def run(x: Tensor) -> Tensor:
        q = x.unflatten(2, (heads, -1)).transpose(1, 2)
        return attend(q, q, q, Causal(), executor=name)

    return run


def _peers(dim: int, heads: int, device: str) -> dict[str, Any]:
    """PyTorch's own multi-head attention, and x-transformers' where it is installed."""
    made = torch.nn.MultiheadAttention(dim, heads, batch_first=True, bias=False).to(device).eval()

    def plain(x: Tensor) -> Tensor:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        out: Tensor = made(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]
        return out

    peers: dict[str, Any] = {"torch MultiheadAttention": plain}
    if importlib.util.find_spec("x_transformers") is not None:
        from x_transformers.x_transformers import Attention as Theirs

        peers["x-transformers"] = Theirs(
            dim=dim, heads=heads, dim_head=dim // heads, causal=True, flash=True
        ).to(device).eval()  # fmt: skip
    return peers


def _first(x: Any) -> Any:
    return x[0] if isinstance(x, tuple) else x
