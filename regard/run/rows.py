"""Some queries of a call alone: what they see is what they saw among the others."""

from __future__ import annotations

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail


def rows_of(call: Call, rows: slice) -> Call:
    """Return the call of queries [start, stop) alone, under the same rule.

    >>> q = torch.randn(1, 2, 9, 4)
    >>> from regard.core.rule import Rule
    >>> from regard.core.support import Causal
    >>> last = rows_of(Call.of(q, q, q, Rule(Causal())), slice(8, 9))
    >>> last.n, last.m, last.rule.offset
    (1, 9, 8)
    """
    start, stop, step = rows.indices(call.n)
    if step != 1 or stop <= start:
        fail(
            ValueRangeError, "rows", f"{rows} of {call.n} queries", "some queries, one by one",
            "pass slice(start, stop) within them",
        )  # fmt: skip
    if (start, stop) == (0, call.n):
        return call
    placed = call.q_positions
    return call.replace(
        q=call.q[:, :, start:stop],
        # Where positions are given, the offset is counted from these.
        rule=call.rule if placed is not None else call.rule.shift(start),
        q_positions=None if placed is None else placed[..., start:stop],
    )  # fmt: skip


__all__ = ["rows_of"]
