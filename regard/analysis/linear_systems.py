"""Attention, state-space models and gated recurrence as one linear system that varies in time.

    h_i = L_i h_{i-1} + B_i u_i,   y_i = C_i h_i + D_i u_i,   y = Phi u,
    Phi_ij = C_i (L_{j+1} ... L_i) B_j  for j <= i

(the dynamical systems framework, Sieber 2024). `linear_attention`, `selective` and `gated` convert;
`LinearSystem.phi` writes Phi out, for small inputs. `taylor_power` has the features by which a
finite state comes near to softmax: order p costs 1 + d + ... + d^p of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


@method(
    "dsf",
    call="import torch\n"
    "from regard.analysis.linear_systems import linear_attention\n"
    "q, k, w_v = torch.rand(9, 4), torch.rand(9, 4), torch.randn(3, 5)\n"
    "phi = linear_attention(q, k, w_v).phi()  # [9, 9, 3, 5]",
)
@dataclass(frozen=True)
class LinearSystem:
    """A system of s states: `passage` L [n, s] (diagonal), `write` B [n, s, u], `read` C [n, y, s].

    `skip` D [n, y, u] is nothing where not given.

    >>> one = torch.ones(4, 1, 1)
    >>> LinearSystem(torch.full((4, 1), 0.5), one, one).run(torch.ones(4, 1)).flatten().tolist()
    [1.0, 1.5, 1.75, 1.875]
    """

    passage: Tensor
    write: Tensor
    read: Tensor
    skip: Tensor | None = None

    def __post_init__(self) -> None:
        n, s = self.passage.shape
        for name, x, axes in (("write", self.write, (0, 1)), ("read", self.read, (0, 2))):
            if x.dim() != 3 or (x.shape[axes[0]], x.shape[axes[1]]) != (n, s):
                fail(
                    ShapeError, name, shape_of(x), f"{n} tokens and {s} states, as passage",
                    "give write [n, s, u] and read [n, y, s]",
                )  # fmt: skip

    @property
    def states(self) -> int:
        """How many numbers are carried from token to token."""
        return self.passage.shape[1]

    def run(self, u: Tensor) -> Tensor:
        """Step through inputs u [n, u]: y [n, y]."""
        state, said = torch.zeros_like(self.passage[0]), []
        for i, token in enumerate(u):
            state = self.passage[i] * state + self.write[i] @ token
            y = self.read[i] @ state
            said.append(y if self.skip is None else y + self.skip[i] @ token)
        return torch.stack(said)

    def phi(self) -> Tensor:
        """Write out Phi [n, n, y, u], zeros above the diagonal."""
        n, s = self.passage.shape
        passed = torch.zeros(n, s, dtype=self.passage.dtype)  # of state j to now
        rows = []
        for i in range(n):
            passed = passed * self.passage[i]
            passed[i] = 1.0
            rows.append(torch.einsum("ys,js,jsu->jyu", self.read[i], passed, self.write))
            if self.skip is not None:
                rows[i][i] += self.skip[i]
        return torch.stack(rows)


def linear_attention(
    q: Tensor, k: Tensor, w_v: Tensor, normalizer: Tensor | None = None
) -> LinearSystem:
    """Convert linear attention: features phi(q), psi(k) [n, f], values w_v u with w_v [e, u].

    L_i = eta_{i-1} / eta_i, B_i = psi(k_i) (x) w_v / eta_i, C_i = phi(q_i)^T (x) I: f e states. The
    `normalizer` eta [n] is phi(q_i) . sum_{j <= i} psi(k_j) unless given; ones leave sums as they
    are, and any function of u_i frees it of past keys (the idea that the comparison suggests).
    """
    n, f = k.shape
    e, u = w_v.shape
    eta = (q * k.cumsum(0)).sum(-1) if normalizer is None else normalizer
    if eta.shape != (n,) or bool((eta == 0).any()):
        fail(
            ValueRangeError, "normalizer", shape_of(eta), f"{n} numbers other than 0",
            "take positive features, or give a normalizer",
        )  # fmt: skip
    ratio = torch.cat([eta[:1], eta[:-1]]) / eta
    passage = ratio[:, None].expand(n, f * e)
    write = torch.einsum("nf,eu->nfeu", k / eta[:, None], w_v).reshape(n, f * e, u)
    read = torch.einsum("nf,xe->nxfe", q, torch.eye(e, dtype=q.dtype)).reshape(n, e, f * e)
    return LinearSystem(passage, write, read)


def selective(step: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> LinearSystem:
    """Convert a selective state-space model (S6): step Delta [n, u], rates A [u, s], b, c [n, s].

    L_i = exp(-Delta_i A), B_i = Delta_i b_i, for each of u channels alone: u s states.
    """
    n, u = step.shape
    s = rates.shape[1]
    own = torch.eye(u, dtype=step.dtype)
    passage = torch.exp(-step[..., None] * rates).reshape(n, u * s)
    write = torch.einsum("nc,ns,cu->ncsu", step, b, own).reshape(n, u * s, u)
    read = torch.einsum("ns,yc->nycs", c, own).reshape(n, u, u * s)
    return LinearSystem(passage, write, read)


def gated(forget: Tensor, enter: Tensor, w_c: Tensor, out: Tensor | None = None) -> LinearSystem:
    """Convert a gated linear recurrence (qLSTM): gates [n, s] from 0 to 1, content w_c [s, u].

    L_i = forget_i, B_i = enter_i * w_c, C_i = out_i (ones where not given). One reversed sigmoid
    for both gates is `enter = 1 - forget`.
    """
    n, s = forget.shape
    gate = torch.ones_like(forget) if out is None else out
    read = torch.diag_embed(gate)
    return LinearSystem(forget, enter[..., None] * w_c.expand(n, s, -1), read)


def taylor_power(x: Tensor, order: int) -> Tensor:
    """Return features whose product is sum_{p <= order} (x . y)^p / p!: [..., d] to [..., sum d^p].

    >>> x = torch.tensor([0.5, 1.0])
    >>> features = taylor_power(x, 3)
    >>> len(features), round(float(features @ features), 4)  # exp(1.25) is 3.4903
    (15, 3.3568)
    """
    if order < 0:
        fail(ValueRangeError, "order", order, "at least 0", "take 2")
    power, parts = torch.ones_like(x[..., :1]), []
    for p in range(order + 1):
        parts.append(power / math.sqrt(math.factorial(p)))
        power = (power[..., None] * x[..., None, :]).flatten(-2)
    return torch.cat(parts, -1)
