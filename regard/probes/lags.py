"""Attention by lag from an earlier copy: measures of free recall, for heads.

A list of distinct tokens is shown twice. From the second copy of item i, attention to study place j
is sorted by lag = j - i: a head that finds the earlier copy peaks at 0, an induction head at +1,
and a contiguous one falls off on both sides (Mistry 2025; Ji-An 2024).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.reading import Reading
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.mass import at_distance, log_weight, mass
from regard.run.survey import survey


def study_list(
    vocabulary: int, items: int, *, rows: int = 16, first: int | None = None, seed: int = 0
) -> Reading:
    """Build lists of distinct tokens, each shown twice, after a start token if there is one.

    >>> tokens = study_list(100, 8, rows=2).tokens
    >>> tokens.shape, len(set(tokens[0].tolist()))
    (torch.Size([2, 16]), 8)
    """
    low = min(16, vocabulary // 4)  # the first ids are often special tokens
    if not 2 <= items <= vocabulary - low:
        fail(
            ValueRangeError, "items", items, f"from 2 to {vocabulary - low}, the words there are",
            "show fewer items",
        )  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    some = [torch.randperm(vocabulary - low, generator=draw)[:items] + low for _ in range(rows)]
    tokens = torch.stack(some).repeat(1, 2)
    if first is not None:
        tokens = torch.cat([torch.full((rows, 1), first), tokens], 1)
    return Reading({"input_ids": tokens}, period=items)


@register("lag")
@method(
    "attention_lag_crp",
    call="from regard.probes.lags import LagProfile, study_list\n"
    "probe, reading = LagProfile(), study_list(vocabulary=2048, items=50)\n"
    "probe.show(reading)  # with regard.attach(model, probe): model(reading.tokens)",
)
class LagProfile(Probe):
    """Attention by lag from the earlier copy, -`reach` to `reach`, normalized to sum 1.

    The score of a head is its forward asymmetry: weight at +1 .. +reach less that at -reach .. -1.
    `profiles` gives [h, 2 reach + 1] for each site, `details["places"]` the weight by study place
    (primacy and recency), `details["copy"]` the share of all weight that is within reach. Queries
    near the ends of the list, whose lags are cut off, do not count.
    """

    key, title, low = "lag", "forward asymmetry", -1.0
    causal_only = True
    stimulus = "repeated"
    definitions: ClassVar = {"asymmetry": "sum of the lag profile over +1 .. less that over -1 .."}

    def __init__(self, reach: int = 5, where: Any = None) -> None:
        super().__init__(where)
        if reach < 1:
            fail(ValueRangeError, "reach", reach, "at least 1", "take 5")
        self.reach = reach
        self.profiles: dict[Site, Tensor] = {}
        self.shares: dict[Site, Tensor] = {}
        self.places: dict[Site, Tensor] = {}

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Weigh each lag, from the middle of the second copy."""
        period = self.reading.period
        if period is None or call.n < 2 * period or period <= 2 * self.reach:
            fail(
                CapabilityError, f"probes: {self.name}", f"{call.n} tokens, period {period}",
                f"a list of more than {2 * self.reach} items shown twice",
                "show study_list(vocabulary, items), or take a smaller reach",
            )  # fmt: skip
        start = call.n - period  # of the second copy
        whole = log_weight(call)
        middle = slice(start + self.reach, call.n - self.reach)
        profile = torch.stack([
            mass(call, at_distance(period - lag), whole)[:, :, middle].double().mean((0, 2))
            for lag in range(-self.reach, self.reach + 1)
        ], -1).cpu()  # fmt: skip
        self.shares[site] = profile.sum(-1)
        self.profiles[site] = profile / profile.sum(-1, keepdim=True).clamp_min(1e-30)
        rows = torch.arange(start, call.n, device=call.q.device)
        late = survey(
            call.q[:, :, start:], call.k, call.v, call.rule, want=("received",), q_positions=rows
        )
        study = slice(start - period, start)
        self.places[site] = late.received[..., study].double().mean(0).cpu() / period

    def result(self) -> Scores:
        """Forward asymmetry by head."""
        r = self.reach
        values = {s: x[:, r + 1 :].sum(1) - x[:, :r].sum(1) for s, x in self.profiles.items()}
        return self.scores(values, profiles=self.profiles, copy=self.shares, places=self.places)


def said_by_lag(logits: Tensor, tokens: Tensor, period: int, reach: int = 5) -> Tensor:
    """Return next-token probabilities after items of the second copy, by lag [2 reach + 1].

    p(next token = study item at lag l), among the items of the list: at +1 it is serial recall.
    logits [b, n, vocabulary], tokens [b, n] of lists shown twice.

    >>> tokens = study_list(40, 8, rows=3).tokens
    >>> following = tokens.roll(-1, 1)
    >>> said = said_by_lag(50.0 * torch.nn.functional.one_hot(following, 40), tokens, 8, reach=1)
    >>> said.round(decimals=3).tolist()
    [0.0, 0.0, 1.0]
    """
    start = tokens.shape[1] - period
    study = tokens[:, start - period : start]
    rows = logits[:, start:].float()
    among = rows.gather(2, study[:, None].expand(-1, period, -1)).softmax(-1)  # [b, item, place]
    middle = torch.arange(reach, period - reach, device=tokens.device)
    lags = [among[:, middle, middle + lag].mean() for lag in range(-reach, reach + 1)]
    return torch.stack(lags)
