"""Converted systems are the mechanisms; more Taylor features come nearer to softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.analysis.linear_systems import gated, linear_attention, selective, taylor_power
from regard.core.features import elu_plus_one
from regard.core.support import Causal
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap
from regard.run.api import attend
from regard.run.scanning import scan


def _said(phi: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ijyu,ju->iy", phi, x)


# In one draw of twenty tokens the farthest output may go astray at the first order.
DRAWS, ORDERS = 32, range(7)


def _gaps_and_states(n: int, d: int, e: int, u: int) -> tuple[list[float], list[int]]:
    """Return for each order of Taylor features the largest gap to softmax, and the states."""
    q, k = (F.normalize(torch.randn(n, d), dim=-1).double() for _ in range(2))
    x, w_v = torch.randn(n, u).double(), torch.randn(e, u).double()
    soft = attend(*(y[None, None] for y in (q * d**0.5, k, x @ w_v.T)), Causal())[0, 0]
    systems = [linear_attention(taylor_power(q, p), taylor_power(k, p), w_v) for p in ORDERS]
    return [gap(one.run(x), soft) for one in systems], [one.states for one in systems]


@check("dsf", beyond="trained models; the normalizer of attention is given by hand")
def systems() -> Claims:
    """Converted systems are the mechanisms; more Taylor features come nearer to softmax."""
    n, d, e, u = 20, 4, 3, 5
    q, k, x = torch.randn(n, d), torch.randn(n, d), torch.randn(n, u)
    w_v = torch.randn(e, u)
    v = x @ w_v.T
    a, b = elu_plus_one(q), elu_plus_one(k)
    native = scan(a[None, None], b[None, None], v[None, None], normalize=1e-9)[0][0, 0]
    linear = gap(_said(linear_attention(a, b, w_v).phi(), x), native)

    step, rates = F.softplus(torch.randn(n, u)), torch.rand(u, 3)
    b_, c_ = torch.randn(2, n, 3)
    state, rows = torch.zeros(u, 3), []
    for i in range(n):
        state = torch.exp(-step[i, :, None] * rates) * state + (step[i] * x[i])[:, None] * b_[i]
        rows.append(state @ c_[i])
    s6 = gap(_said(selective(step, rates, b_, c_).phi(), x), torch.stack(rows))

    forget, enter, w_c = torch.rand(n, d), torch.rand(n, d), torch.randn(d, u)
    state, rows = torch.zeros(d), []
    for i in range(n):
        state = forget[i] * state + enter[i] * (w_c @ x[i])
        rows.append(state)
    recurrence = gap(_said(gated(forget, enter, w_c).phi(), x), torch.stack(rows))

    drawn = [_gaps_and_states(n, d, e, u) for _ in range(DRAWS)]
    gaps = torch.tensor([found for found, _ in drawn]).mean(0).tolist()
    sizes = drawn[0][1]
    for name, apart in (("linear attention", linear), ("S6", s6), ("a gated RNN", recurrence)):
        yield claim("For random weights", f"difference of Phi, {name}", apart).within(
            1e-5, "its native parallel form", because=CATALOGUE
        )
    for order in range(1, 7):
        yield claim(
            "With Taylor features",
            f"gap to softmax, order {order}, mean of {DRAWS} draws",
            gaps[order],
        ).below(gaps[order - 1], "the order before")
    for order, size in enumerate(sizes):
        yield claim("With Taylor features", f"states, order {order}", size).equals(
            e * sum(d**p for p in range(order + 1)), "e (1 + d + ... + d^p)"
        )
