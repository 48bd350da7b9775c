"""Small parts that many methods share: extra keys, mixtures outside the softmax, chosen tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.heads import gate_heads
from regard.core.score.contents import KeyWeights
from regard.core.support.base import Everything, Support
from regard.core.support.chosen import Extended, Tiles
from regard.core.tilemap import EMPTY


def with_extra_keys(call: Call, k: Tensor, v: Tensor, log_weight: Tensor | None = None) -> Call:
    """Append keys that every query may attend to and that share the softmax with the others.

    k [b, g, x, d], v [b, g, x, e]: a reference image, other frames, a memory, a learned sink.
    `log_weight` [b or 1, h or 1, x] counts them more or less; −inf removes one. Steps that belong
    to keys by place must already be made for m + x keys.

    >>> x = torch.randn(1, 2, 4, 8)
    >>> with_extra_keys(Call.of(x, x, x), x[:, :, :1], x[:, :, :1]).m
    5
    """
    if k.shape[:2] != call.k.shape[:2] or k.shape[3] != call.d or v.shape[:3] != k.shape[:3]:
        fail(
            ShapeError, "k", f"{list(k.shape)} with v {list(v.shape)}",
            f"[{call.b}, {call.g}, x, {call.d}] and [{call.b}, {call.g}, x, {call.e}]",
            "give the extra keys the heads and sizes of the others",
        )  # fmt: skip
    if call.k_positions is not None:
        fail(
            RuleError, "call", "keys at positions of their own", "keys in a row",
            "append the keys before they are placed",
        )  # fmt: skip
    rule = call.rule.replace(support=Extended(call.rule.support, call.m))
    if log_weight is not None:
        rule = rule.replace(score=rule.score + KeyWeights(pad(log_weight, (call.m, 0))))
    return call.replace(k=torch.cat([call.k, k], 2), v=torch.cat([call.v, v], 2), rule=rule)


def mixed(outs: Sequence[Tensor], gates: Sequence[Tensor | float]) -> Tensor:
    """Mix attentions outside the softmax: the sum of gate times output.

    Each output is [b, h, n, e]; each gate a number, or a tensor [h], [b, h] or [b, h, n].
    Differential attention is `mixed((a, b), (1.0, -strength))`.

    >>> one = torch.ones(1, 2, 3, 4)
    >>> mixed((one, one), (1.0, torch.tensor([-1.0, 0.0])))[0, :, 0, 0].tolist()
    [0.0, 1.0]
    """
    if len(outs) != len(gates) or not outs:
        fail(
            RuleError, "gates", f"{len(gates)} for {len(outs)} outputs", "a gate for each output",
            "pass as many gates as outputs",
        )  # fmt: skip
    total = torch.zeros_like(outs[0])
    for out, gate in zip(outs, gates, strict=True):
        total = total + (gate_heads(out, gate) if isinstance(gate, Tensor) else out * gate)
    return total


def pooled(x: Tensor, size: int) -> Tensor:
    """Mean of each tile of `size` tokens: [b, h, n, d] -> [b, h, t, d]; the last may be short.

    >>> pooled(torch.arange(3.0).view(1, 1, 3, 1), 2).flatten().tolist()
    [0.5, 2.0]
    """
    n = x.shape[2]
    sums = pad(x, (0, 0, 0, -n % size)).unflatten(2, (-1, size)).sum(3)
    counts = torch.full((sums.shape[2],), float(size), device=x.device)
    if n % size:
        counts[-1] = n % size
    means: Tensor = sums / counts[:, None].to(x.dtype)
    return means


def choose_tiles(
    scores: Tensor, count: int, size: int | tuple[int, int], within: Support | None = None
) -> Tiles:
    """Choose for each tile of queries the `count` tiles of keys with the highest scores.

    `scores` [b, h, t_q, t_k]; tiles that `within` leaves empty are never chosen. Pool, score,
    select, attend: MoBA, SeerAttention and page selection differ in how they score.

    >>> scores = torch.tensor([[[[0.0, 9.0], [1.0, 2.0]]]])
    >>> choose_tiles(scores, 1, 8).chosen.int().tolist()
    [[[[0, 1], [0, 1]]]]
    """
    if scores.dim() != 4:
        fail(
            ShapeError, "scores", shape_of(scores), "[b, h, t_q, t_k]", "score every pair of tiles"
        )
    if count < 1:
        fail(ValueRangeError, "count", count, "at least 1 tile", "keep a tile for each query")
    sides = (size, size) if isinstance(size, int) else size
    t_q, t_k = scores.shape[2:]
    states = (Everything() if within is None else within).tiles(
        t_q * sides[0], t_k * sides[1], sides, device=scores.device
    )
    open_ = (states.state != EMPTY).expand(scores.shape)
    ranked = scores.masked_fill(~open_, -torch.inf)
    best = ranked.topk(min(count, t_k), dim=-1).indices
    chosen = torch.zeros_like(open_).scatter(-1, best, True) & open_
    return Tiles(chosen, sides)
