"""The attention that some queries give each key, by site, computed without a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Stage
from regard.run.rows import rows_of
from regard.run.survey import survey_call


class AttendedKeys(Stage):
    """Record the mean weight of queries [start, stop) on each key: `found` [b, h, m] of each site.

    Negative numbers count from the last query, so that slice(-1, None) is the last one.
    """

    def __init__(self, rows: slice, where: Any = None) -> None:
        super().__init__(where)
        self.rows = rows
        self.found: dict[Site, Tensor] = {}

    def see(self, call: Call, result: Result) -> None:
        """Survey only these queries."""
        start, stop, _ = self.rows.indices(call.n)
        if stop <= start:
            fail(RuleError, "rows", f"{self.rows} of {call.n} queries", "some queries", "name some")
        report = survey_call(rows_of(call, slice(start, stop)), ("received",))
        self.found[call.site] = report.received / (stop - start)

    def summed(self) -> Tensor:
        """Sum over sites and heads: [b, m]."""
        return torch.stack([x.sum(1) for x in self.found.values()]).sum(0)


def attended(
    model: Any, inputs: Mapping[str, Any], rows: slice = slice(-1, None), where: Any = None,
    run: Callable[..., Any] | None = None,
) -> AttendedKeys:  # fmt: skip
    """Run a model once, and return what some of its queries attend to.

    >>> from regard.layers.attention import Attention
    >>> seen = attended(Attention(8, heads=2), {"x": torch.randn(1, 5, 8)})
    >>> [x.shape for x in seen.found.values()]
    [torch.Size([1, 2, 5])]
    """
    stage = AttendedKeys(rows, where)
    with attach(model, stage, check=False), torch.no_grad():
        (run or model)(**inputs)
    return stage
