"""One call of attention: tensors, a rule, and where they stand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import (
    DeviceError,
    DtypeError,
    ShapeError,
    ValueRangeError,
    fail,
    shape_of,
)
from regard.core.rule import Rule
from regard.core.score.base import At

PLAIN = Rule()
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Call:
    """q [b, h, n, d], k [b, g, m, d], v [b, g, m, e] and the rule they meet under.

    `q_positions` [n] or [b, n] and `k_positions` [m], [b, m] or [b, g, m] say where the tokens
    stand when that is not 0, 1, 2, ...; a key at position -1 is an empty slot. `site` names the
    place in a model that the call comes from.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rule: Rule = PLAIN
    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    dropout: float = 0.0
    site: Any = None

    @property
    def b(self) -> int:
        """Batch size."""
        return self.q.shape[0]

    @property
    def h(self) -> int:
        """Query heads."""
        return self.q.shape[1]

    @property
    def g(self) -> int:
        """Key heads."""
        return self.k.shape[1]

    @property
    def n(self) -> int:
        """Queries."""
        return self.q.shape[2]

    @property
    def m(self) -> int:
        """Keys."""
        return self.k.shape[2]

    @property
    def d(self) -> int:
        """Head size of queries and keys."""
        return self.q.shape[3]

    @property
    def e(self) -> int:
        """Head size of values."""
        return self.v.shape[3]

    @property
    def placed(self) -> bool:
        """Whether tokens stand elsewhere than at 0, 1, 2, ..."""
        return self.q_positions is not None or self.k_positions is not None

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient will be asked of q, k, v or the rule."""
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in (self.q, self.k, self.v)) or self.rule_needs_grad

    @property
    def rule_needs_grad(self) -> bool:
        """Whether the rule holds something that is being learned."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.rule.reads().tensors)

    def replace(self, **changes: Any) -> Call:
        """Make the same call with some parts changed."""
        return dataclasses.replace(self, **changes)

    def at(self, rows: Tensor | None = None, cols: Tensor | None = None) -> At:
        """Give the places of some queries and keys (all where not given), to broadcast.

        `rows` and `cols` are 1-D index tensors.
        """
        device = self.q.device
        rows = torch.arange(self.n, device=device) if rows is None else rows
        cols = torch.arange(self.m, device=device) if cols is None else cols
        b = torch.arange(self.b, device=device).view(-1, 1, 1, 1)
        h = torch.arange(self.h, device=device).view(-1, 1, 1)
        i, j = rows.view(-1, 1) + self.rule.offset, cols
        if self.q_positions is not None:
            x = self.q_positions.to(device)[..., rows] + self.rule.offset
            i = x[:, None, :, None] if x.dim() == 2 else x[:, None]
        if self.k_positions is not None:
            y = self.k_positions.to(device)[..., cols]
            if y.dim() == 3:
                y = y.repeat_interleave(self.h // y.shape[1], dim=1)
                j = y[:, :, None]
            else:
                j = y[:, None, None] if y.dim() == 2 else y
        return At(b, h, rows.view(-1, 1), cols, i, j)

    def allowed(self, at: At) -> Tensor:
        """Say which pairs may meet, broadcasting to [b, h, n, m]."""
        support = self.rule.support
        if support.tensors():
            support = support.memo(("on", str(self.q.device)), lambda: support.to(self.q.device))
        met = support.allows(at.b, at.h, at.i, at.j)
        return met if self.k_positions is None else met & (at.j >= 0)

    def checked(self) -> Call:
        """Raise a `RegardError` unless the call can mean something; give the call."""
        for name in ("q", "k", "v"):
            _need_tensor(name, getattr(self, name))
        _need_shapes(self)
        extent = self.rule.support.extent()
        for x, size, axis in ((extent[0], self.b, "batch"), (extent[1], self.h, "query heads")):
            if x not in (1, size):
                fail(
                    ShapeError,
                    "rule.support",
                    f"made for {axis} {x}",
                    f"1 or {size}, as q has",
                    f"build the support for {axis} {size}",
                )
        _need_positions(self)
        if not self.placed:
            self.rule.support.check(self.n + self.rule.offset, self.m)
        self.rule.score.check(self.b, self.h, self.n, self.m, self.d)
        self.rule.weigh.check(self.h)
        if not isinstance(self.dropout, int | float) or not 0.0 <= self.dropout < 1.0:
            fail(
                ValueRangeError,
                "dropout",
                shape_of(self.dropout),
                "a share from 0 up to 1",
                "pass the share of weights to drop",
            )
        return self


def _need_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        fail(ShapeError, name, shape_of(x), "a tensor [b, h, n, d]", "pass a torch.Tensor")
    if x.dim() != 4:
        fail(
            ShapeError,
            name,
            shape_of(x),
            "4 axes [batch, heads, tokens, head size]",
            "view it as [b, n, h, d] and transpose(1, 2)",
        )
    if x.dtype not in FLOATS:
        fail(
            DtypeError,
            name,
            f"{x.dtype}",
            "float32, float64, bfloat16 or float16",
            f"pass {name}.float()",
        )


def _need_shapes(call: Call) -> None:
    q, k, v = call.q, call.k, call.v
    for name, x in (("k", k), ("v", v)):
        if x.device != q.device:
            fail(
                DeviceError,
                name,
                f"on {x.device}",
                f"on {q.device}, as q",
                f"move it with {name}.to(q.device)",
            )
        if x.dtype != q.dtype:
            fail(
                DtypeError,
                name,
                f"{x.dtype}",
                f"{q.dtype}, as q",
                f"cast it with {name}.to(q.dtype)",
            )
        if x.shape[0] != q.shape[0]:
            fail(
                ShapeError,
                name,
                f"batch {x.shape[0]}",
                f"batch {q.shape[0]}, as q",
                "expand the smaller one",
            )
    if v.shape[1] != k.shape[1]:
        fail(
            ShapeError,
            "v",
            f"{v.shape[1]} heads",
            f"{k.shape[1]} heads, as k",
            "give k and v the same heads",
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        fail(
            ShapeError,
            "k",
            f"{k.shape[1]} heads",
            f"a divisor of the {q.shape[1]} query heads",
            "repeat or pool the key heads",
        )
    if k.shape[2] != v.shape[2]:
        fail(
            ShapeError,
            "v",
            f"{v.shape[2]} tokens",
            f"{k.shape[2]} tokens, as k",
            "give every key its value",
        )
    if k.shape[3] != q.shape[3]:
        fail(
            ShapeError,
            "k",
            f"head size {k.shape[3]}",
            f"head size {q.shape[3]}, as q",
            "project q and k to one size",
        )
    if q.shape[3] == 0:
        fail(
            ShapeError, "q", "head size 0", "a head size of at least 1", "project to some channels"
        )


def _need_positions(call: Call) -> None:
    for name, x, size, shapes in (
        ("q_positions", call.q_positions, call.n, ([call.n], [call.b, call.n], [1, call.n])),
        (
            "k_positions",
            call.k_positions,
            call.m,
            ([call.m], [call.b, call.m], [1, call.m], [call.b, call.g, call.m]),
        ),
    ):
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.is_floating_point() or x.dtype == torch.bool:
            fail(DtypeError, name, shape_of(x), "an integer tensor", "pass torch.arange(...)")
        if list(x.shape) not in shapes:
            fail(
                ShapeError,
                name,
                f"{list(x.shape)}",
                f"one of {list(shapes)}",
                f"give the position of each of the {size} tokens",
            )
        # On other devices the look would wait for the device: there the caller is trusted.
        if x.device.type == "cpu" and size > 1:
            real = x[..., 1:] >= 0
            if bool(((x[..., 1:] <= x[..., :-1].cummax(-1).values) & real).any()):
                fail(
                    ValueRangeError,
                    name,
                    "positions that do not increase",
                    "increasing positions (-1 marks an empty slot of k)",
                    "sort the tokens by position, keys and values alike",
                )
        if name == "q_positions" and x.device.type == "cpu" and size and int(x.min()) < 0:
            fail(
                ValueRangeError,
                name,
                int(x.min()),
                "positions of at least 0",
                "drop padded queries, or give them any position of their own",
            )
