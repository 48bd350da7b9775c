"""A call over ranks that are threads, put together again, beside the same call in one process."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.run.runner import run
from regard.schemes import Layout, ShardedKeys, Traffic, traffic
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers


class Together(NamedTuple):
    """Outputs and gradients of all tokens, and what each rank sent forward and in all."""

    out: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    forward: list[Traffic]
    both: list[Traffic]

    def off(self, other: tuple[Tensor, ...]) -> float:
        """Return the largest difference from (out, dq, dk, dv)."""
        return max(float((a - b).abs().max()) for a, b in zip(self[:4], other, strict=True))


def over_ranks(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, rule: Rule, layout: Layout, scheme: str,
    real: Tensor | None = None,
) -> Together:  # fmt: skip
    """Run a call with its backward over the ranks of a layout."""

    def one(peers: Peers) -> tuple[list[Tensor], Traffic, Traffic]:
        own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme=scheme, real=real)
        with traffic() as both:
            with traffic() as forward:
                out = run(Call(own[0], keys, rule)).out
            grads = torch.autograd.grad(out, own, layout.take(d_out, peers.rank, 2))
        return [out.detach(), *grads], forward, both

    found = on_ranks(layout.world, one)
    order = torch.cat([layout.positions(rank) for rank in range(layout.world)]).argsort()
    parts = [torch.cat([x[0][i] for x in found], 2)[:, :, order] for i in range(4)]
    return Together(*parts, [x[1] for x in found], [x[2] for x in found])


def alone(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, rule: Rule, real: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return (out, dq, dk, dv) of one process, by autograd through the whole matrix."""
    given = [x.detach().clone().requires_grad_(True) for x in (q, k, v)]
    at = None if real is None else torch.where(real, torch.arange(k.shape[2]), -1)
    out = run(Call(given[0], Dense(given[1], given[2], at), rule), executor="reference").out
    return (out.detach(), *torch.autograd.grad(out, given, d_out))


def drawn(b: int, h: int, g: int, n: int, d: int) -> tuple[Tensor, ...]:
    """Draw q, k, v and a gradient of the output."""
    return (
        torch.randn(b, h, n, d), torch.randn(b, g, n, d), torch.randn(b, g, n, d),
        torch.randn(b, h, n, d),
    )  # fmt: skip


__all__ = ["Together", "alone", "drawn", "over_ranks"]
