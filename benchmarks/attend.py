"""Time `regard.attend` beside PyTorch's attention and FlexAttention, in one process.

    python benchmarks/attend.py                     # every case, prints tables
    python benchmarks/attend.py window tiles        # some cases
    python benchmarks/attend.py --save NAME         # also writes benchmarks/results/NAME.json

8 heads of 64; n 4,096 for the plain case, 16,384 elsewhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import CLOCKS, compare, save
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regard
from regard.core.support import (
    Causal,
    Neighborhood,
    Sinks,
    Support,
    Tiles,
    Window,
    documents_from_lengths,
)

H, D = 8, 64


def tensors(n: int, dtype: torch.dtype, heads: int = H, size: int = D) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, n, size).to(dtype) for _ in range(3)]


def backward(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    d_out = torch.randn_like(q)
    return lambda: torch.autograd.grad(call(*leaves), leaves, d_out)


def plain(dtype: torch.dtype, rounds: int) -> list[dict]:
    q, k, v = tensors(4096, dtype)
    rule = regard.Rule(Causal())
    rows = compare(
        f"plain causal, n 4,096, {dtype}",
        {
            "SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "regard.attend": lambda: regard.attend(q, k, v, rule),
        },
        rounds * 3,
    )
    q, k, v = tensors(8, dtype, 1, 8)
    tiny = compare(
        f"tiny call, n 8, 1 head of 8, {dtype} (mean of 2,000 in a round)",
        {
            "SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "regard.attend": lambda: regard.attend(q, k, v, rule),
        },
        rounds,
        2000,
    )
    added = 1e3 * (tiny[1]["median_ms"] - tiny[0]["median_ms"])
    print(f"  added to a tiny call: {added:.1f} us")
    tiny[1]["added_us"] = round(added, 2)
    return rows + tiny


def supports(n: int) -> dict[str, Support]:
    torch.manual_seed(0)
    side = int(n**0.5)
    cuts = torch.randperm(n - 1)[:63].sort().values + 1
    ends = [0, *cuts.tolist(), n]
    return {
        "window": Causal() & Window(512),
        "sinks": Causal() & (Window(512) | Sinks(4)),
        "neighborhood": Neighborhood((13, 13), (side, side)),
        "documents": Causal() & documents_from_lengths(ends, cumulative=True),
        # One choice for all heads: with eight, the dense masks of the peers would not fit.
        "tiles": Tiles(torch.rand(1, 1, n // 64, n // 64) < 0.1, 64),
    }


def peer_masks(n: int) -> dict[str, Callable[..., Tensor]]:
    """Give the same supports as a user of FlexAttention would write them."""
    made = supports(n)
    side = int(n**0.5)
    ids, chosen = made["documents"].parts[1].query[0], made["tiles"].chosen[0, 0]

    def near(x: Tensor, y: Tensor) -> Tensor:
        first = (x - 6).clamp(0, side - 13)
        return (y >= first) & (y < first + 13)

    return {
        "window": lambda b, h, i, j: (j <= i) & (i - j < 512),
        "sinks": lambda b, h, i, j: (j <= i) & ((i - j < 512) | (j < 4)),
        "neighborhood": lambda b, h, i, j: near(i // side, j // side) & near(i % side, j % side),
        "documents": lambda b, h, i, j: (j <= i) & (ids[i] == ids[j]),
        "tiles": lambda b, h, i, j: chosen[i // 64, j // 64],
    }


def structured(
    name: str, n: int, dtype: torch.dtype, rounds: int, clock: str, masked: bool
) -> list[dict]:
    support = supports(n)[name]
    rule, (q, k, v) = regard.Rule(support), tensors(n, dtype)
    print(f"\n{regard.plan(q, k, v, rule)}")
    heads = support.extent()[1]
    calls: dict[str, Callable[[], object]] = {
        "SDPA causal": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "regard.attend": lambda: regard.attend(q, k, v, rule),
    }
    if masked:
        mask = support.matrix(n)
        calls["SDPA, dense mask"] = lambda: F.scaled_dot_product_attention(q, k, v, mask)
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention)
    block = create_block_mask(
        peer_masks(n)[name], None, None if heads == 1 else heads, n, n, device=q.device
    )
    start = time.perf_counter()
    try:
        with torch.no_grad():
            compiled(q, k, v, block_mask=block)
        calls["FlexAttention, compiled"] = lambda: compiled(q, k, v, block_mask=block)
        print(f"  FlexAttention's first call took {time.perf_counter() - start:.1f} s")
    except Exception as failed:  # a peer that cannot compile a case is a result, not our error
        print(f"  FlexAttention failed: {type(failed).__name__}")
    with torch.no_grad():
        rows = compare(
            f"{name}, n {n:,}, {dtype}, forward: {support}", calls, rounds, clock=CLOCKS[clock]
        )
    both = {
        "SDPA causal": backward(
            lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), q, k, v
        ),
        "regard.attend": backward(lambda *x: regard.attend(*x, rule), q, k, v),
    }
    return rows + compare(
        f"{name}, n {n:,}, {dtype}, forward + backward", both, rounds, clock=CLOCKS[clock]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ("plain", "window", "sinks", "neighborhood", "documents", "tiles")
    parser.add_argument("cases", nargs="*", metavar="case", help=f"some of {', '.join(cases)}")
    parser.add_argument("--n", type=int, default=16384)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread")
    parser.add_argument("--no-dense-mask", action="store_true", help="leave out what is slowest")
    parser.add_argument("--save", metavar="NAME")
    given = parser.parse_args()
    unknown = set(given.cases) - set(cases)
    if unknown:
        parser.error(f"no case {sorted(unknown)}; there are {', '.join(cases)}")
    rows = []
    for dtype in (getattr(torch, x) for x in given.dtypes.split(",")):
        for case in given.cases or cases:
            if case == "plain":
                with torch.no_grad():
                    rows += plain(dtype, given.rounds)
            else:
                rows += structured(
                    case, given.n, dtype, given.rounds, given.clock, not given.no_dense_mask
                )
    if given.save:
        save(given.save, rows, heads=H, size=D, n=given.n, clock=given.clock)


if __name__ == "__main__":
    main()
