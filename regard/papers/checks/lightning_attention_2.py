"""Linear attention in blocks equals the recurrence with its gradients, in linear time."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.linear_cost import MovedBytes
from regard.papers.shared.measure import Largest, gap
from regard.run.scanning import scan


def _cost(n: int) -> tuple[int, int, int]:
    """Multiply-adds, bytes read and written, and largest tensor of a chunked scan of n tokens."""
    q, k, v = (torch.randn(1, 4, n, 64) for _ in range(3))
    with FlopCounterMode(display=False) as flops, MovedBytes() as traffic, Largest() as largest:
        scan(q, k, v, log_decay=math.log(0.9), form="chunked")
    return flops.get_total_flops(), traffic.bytes, largest.bytes


@check("lightning_attention_2")
def blockwise_scan() -> Claims:
    """Linear attention in blocks equals the recurrence with its gradients, in linear time."""
    gaps, right = [], True
    for decay in (1.0, 0.9):
        rate = math.log(decay)
        q, k, v = (torch.randn(1, 2, 37, 4, dtype=torch.float64) for _ in range(3))
        naive = scan(q, k, v, log_decay=rate, form="recurrent")[0]
        for block in (8, 16, 32, 64):
            out = scan(q, k, v, log_decay=rate, form="chunked", chunk=block)[0]
            gaps.append(gap(out, naive))
        leaves = [x[:, :1, :19].detach().requires_grad_() for x in (q, k, v)]

        def blocks(q: Tensor, k: Tensor, v: Tensor, rate: float = rate) -> Tensor:
            return scan(q, k, v, log_decay=rate, form="chunked", chunk=8)[0]

        right = right and torch.autograd.gradcheck(blocks, leaves)
    costs = [_cost(n) for n in (1024, 2048, 4096, 8192)]
    # From 1024 to 8192 tokens are three doublings.
    flop_growth, traffic_growth, memory_growth = (
        (last / first) ** (1 / 3) for first, last in zip(costs[0], costs[-1], strict=True)
    )
    yield claim(
        "Forward equals the naive", "largest difference over decays and blocks", max(gaps)
    ).within(1e-10, "the recurrence in float64", because=FLOAT64)
    yield claim("Forward equals the naive", "gradcheck passes", bool(right)).equals(
        True, "finite differences"
    )
    yield claim(
        "result independent of B", "largest difference of blocks of 8, 16, 32 and 64", max(gaps)
    ).within(1e-10, "one result", because=FLOAT64)
    for name, growth in (
        ("multiply-adds", flop_growth),
        ("bytes read and written", traffic_growth),
        ("largest tensor", memory_growth),
    ):
        yield claim("time for T=1K..8K", f"{name}, growth in a doubling", growth).below(
            2.4, "twice is linear, four times quadratic", because=CATALOGUE
        )
