"""Scans over ranks beside scans of one process; run by test_spreading.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.run.low_rank_scanning import scan_low_rank
from regard.run.scanning import scan
from regard.schemes import Contiguous, peers_of, traffic
from regard.schemes.lasp2 import message_bytes, scan_low_rank_sharded, scan_sharded


def scans(lengths: list[int], peers: Any = None) -> list[dict[str, Any]]:
    """Scans over ranks beside `regard.scan`: the largest difference, and the bytes sent."""
    peers = peers or peers_of(None)
    found = []
    for n in lengths:
        for kind in ("plain", "decay", "channels", "delta", "normalized", "documents", "low rank"):
            draw = torch.Generator().manual_seed(n)
            b, h, g, d, e = 2, 4, 2, 5, 6
            wide = {"dtype": torch.float64, "generator": draw}
            q, k, v = (
                torch.randn(b, x, n, y, **wide).mul(0.3).requires_grad_(True)
                for x, y in ((h, d), (g, d), (g, e))
            )
            decay = torch.rand(
                b,
                h,
                n,
                *([d] if kind in ("channels", "low rank") else []),
                dtype=torch.float64,
                generator=draw,
            )
            log_decay = None if kind in ("plain", "normalized") else -decay
            log_decay = None if log_decay is None else log_decay.requires_grad_(True)
            beta = (
                torch.rand(b, h, n, dtype=torch.float64, generator=draw)
                if kind == "delta"
                else None
            )
            reset = None
            if kind in ("documents", "low rank"):
                reset = torch.rand(b, n, generator=draw) < 0.1
            if kind == "normalized":
                q, k = (x.detach().abs().requires_grad_(True) for x in (q, k))
            more: dict[str, Any] = {"normalize": 1e-6} if kind == "normalized" else {}
            # Where older memories are read, and where what was read is written (RWKV-7).
            ways: list[Tensor] = []
            if kind == "low rank":
                ways = [
                    torch.randn(b, h, n, d, **wide).mul(0.3).requires_grad_(True) for _ in range(2)
                ]
            single, many = (scan_low_rank, scan_low_rank_sharded) if ways else (scan, scan_sharded)
            if beta is not None:
                more["beta"] = beta
            cut = Contiguous(n, peers.world)

            def own(x: Tensor | None, axis: int, cut: Any = cut) -> Any:
                return None if x is None else cut.take(x, peers.rank, axis)

            one, state = single(q, k, v, *ways, log_decay=log_decay, reset=reset, chunk=4, **more)
            weights = torch.randn(one.shape, dtype=one.dtype, generator=draw)
            asked = [x for x in (q, k, v, *ways, log_decay) if x is not None]
            whole = torch.autograd.grad((one * weights).sum(), asked)
            with traffic() as sent:
                if beta is not None:
                    more["beta"] = own(beta, 2)
                part, last = many(
                    *(own(x, 2) for x in (q, k, v, *ways)), log_decay=own(log_decay, 2),
                    reset=own(reset, 1), chunk=4, mesh=peers, **more,
                )  # fmt: skip
                forward = sent.sent
                grads = torch.autograd.grad((part * own(weights, 2)).sum(), asked)
            width = e + 1 if kind == "normalized" else e
            formula = 2 * message_bytes(  # float64
                b,
                h,
                d,
                width,
                delta=kind in ("delta", "low rank"),
                channels=d if kind == "channels" else 1,
            )
            found.append({
                "kind": kind, "n": n, "sent": forward, "back": sent.sent - forward,
                "formula": formula * (peers.world - 1),
                "out": float((part - own(one, 2)).detach().abs().max()),
                "state": float((last.memory - state.memory).detach().abs().max()),
                "grads": max(
                    float((peers.total(x, "sum") - y).abs().max())
                    for x, y in zip(grads, whole, strict=True)
                ),
            })  # fmt: skip
    return found
