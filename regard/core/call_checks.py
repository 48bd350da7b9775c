"""Checks of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import (
    DeviceError,
    DtypeError,
    RuleError,
    ShapeError,
    ValueRangeError,
    fail,
    shape_of,
)
from regard.core.keys import Dense, Keys, Later, Positions
from regard.core.readable import can_be_read

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_call(call: Call) -> None:
    """Raise a `RegardError` unless the call is valid."""
    need_call_tensor("q", call.q)
    if isinstance(call.keys, Dense):
        for name in ("k", "v"):
            need_call_tensor(name, getattr(call.keys, name))
        _need_dense(call, call.keys)
    _need_keys(call)
    extent = call.rule.support.extent()
    for x, size, axis in ((extent[0], call.b, "batch"), (extent[1], call.h, "query heads")):
        if x not in (1, size):
            fail(
                ShapeError,
                "rule.support",
                f"made for {axis} {x}",
                f"1 or {size}, as q has",
                f"build the support for {axis} {size}",
            )
    _need_positions(call)
    if not call.placed:
        call.rule.support.check(call.n + call.rule.offset, call.m)
    call.rule.score.check(call.b, call.h, call.n, call.m, call.d)
    call.rule.weigh.check(call.h)
    if not isinstance(call.dropout, int | float) or not 0.0 <= call.dropout < 1.0:
        fail(
            ValueRangeError,
            "dropout",
            shape_of(call.dropout),
            "a share from 0 up to 1",
            "pass the share of weights to drop",
        )


def need_call_tensor(name: str, x: Any) -> None:
    """Raise unless x is a floating tensor of four axes."""
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


def _need_dense(call: Call, keys: Dense) -> None:
    """Raise unless keys and values belong together."""
    q, k, v = call.q, keys.k, keys.v
    for name, x in (("k", k), ("v", v)):
        if x.device != q.device:
            fail(
                DeviceError, name, f"on {x.device}", f"on {q.device}, as q",
                f"move it with {name}.to(q.device)",
            )  # fmt: skip
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
                ShapeError, name, f"batch {x.shape[0]}", f"batch {q.shape[0]}, as q",
                "expand the smaller one",
            )  # fmt: skip
    if v.shape[1] != k.shape[1]:
        fail(
            ShapeError, "v", f"{v.shape[1]} heads", f"{k.shape[1]} heads, as k",
            "give k and v the same heads",
        )  # fmt: skip
    if k.shape[2] != v.shape[2]:
        fail(
            ShapeError, "v", f"{v.shape[2]} tokens", f"{k.shape[2]} tokens, as k",
            "give every key its value",
        )  # fmt: skip


def _need_keys(call: Call) -> None:
    """Raise unless the keys, in whatever form, are for these queries."""
    q, keys = call.q, call.keys
    if not isinstance(keys, Keys):
        fail(
            RuleError, "keys", shape_of(keys), "a Keys: Dense(k, v), Paged, Packed, Ragged, Slots",
            "pass Dense(k, v), or Call.of(q, k, v, ...)",
        )  # fmt: skip
    b, g, _, d, _ = keys.shape
    name = "k" if isinstance(keys, Dense) else "keys"
    if keys.device != q.device:
        fail(
            DeviceError,
            name,
            f"on {keys.device}",
            f"on {q.device}, as q",
            "move them to one device",
        )
    if keys.dtype != q.dtype:
        fail(DtypeError, name, f"{keys.dtype}", f"{q.dtype}, as q", "cast q, or the keys")
    if b != q.shape[0]:
        fail(ShapeError, name, f"batch {b}", f"batch {q.shape[0]}, as q", "expand the smaller one")
    if g == 0 or q.shape[1] % g:
        fail(
            ShapeError, name, f"{g} heads", f"a divisor of the {q.shape[1]} query heads",
            "repeat or pool the key heads",
        )  # fmt: skip
    if d != q.shape[3]:
        fail(
            ShapeError, name, f"head size {d}", f"head size {q.shape[3]}, as q",
            "project q and k to one size",
        )  # fmt: skip
    if q.shape[3] == 0:
        fail(
            ShapeError, "q", "head size 0", "a head size of at least 1", "project to some channels"
        )


def _positions_given(keys: Keys) -> Any:
    """Return positions that somebody wrote down, not those that a rule tells."""
    at = keys.at if isinstance(keys, Dense) else None
    return None if isinstance(at, Positions | Later) else at


def _need_positions(call: Call) -> None:
    """Raise unless positions are integers of the right shape that increase."""
    for name, x, size, shapes in (
        ("q_positions", call.q_positions, call.n, ([call.n], [call.b, call.n], [1, call.n])),
        (
            "k_positions",
            _positions_given(call.keys),
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
        # On other devices the look would wait for the device: there the caller is trusted, as where
        # a graph is traced.
        readable = x.device.type == "cpu" and can_be_read(x)
        if readable and size > 1:
            real = x[..., 1:] >= 0
            if bool(((x[..., 1:] <= x[..., :-1].cummax(-1).values) & real).any()):
                fail(
                    ValueRangeError,
                    name,
                    "positions that do not increase",
                    "increasing positions (-1 marks an empty slot of k)",
                    "sort the tokens by position, keys and values alike",
                )
        if name == "q_positions" and readable and size and int(x.min()) < 0:
            fail(
                ValueRangeError,
                name,
                int(x.min()),
                "positions of at least 0",
                "drop padded queries, or give them any position of their own",
            )
