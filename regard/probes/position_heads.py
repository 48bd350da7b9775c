"""Heads and positions: rotary pairs, and the weight on the first and latest keys."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.support import Sinks, Support, Window
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.probes.roles import OnPairs
from regard.run.mass import log_part


@register("streaming", groups=("patterns",))
class StreamingHeads(OnPairs):
    """Weight within the first and the latest keys: heads that need no more can stream.

    Of queries that could look elsewhere. DuoAttention learns which heads these are; this is their
    weight, without training.
    """

    key, title = "streaming", "first and latest keys"
    causal_only = True
    definitions: ClassVar = {"mean": "mean weight on the first `sinks` and latest `recent` keys"}

    def __init__(self, sinks: int = 4, recent: int = 64, where: Any = None) -> None:
        super().__init__(where)
        if sinks < 1 or recent < 1:
            fail(ValueRangeError, "sinks, recent", (sinks, recent), "at least 1 each", "take 4, 64")
        self.sinks, self.recent = sinks, recent

    def part(self, call: Call) -> Support:
        """Return the two ends."""
        return Sinks(self.sinks) | Window(self.recent)

    def eligible(self, call: Call, part: Tensor) -> Tensor:
        """Return queries with keys between the two."""
        return log_part(call, ~self.part(call)) > -torch.inf


@register("rotary", groups=("patterns",))
@method(
    "rope_positional_heads",
    call="from regard.probes.position_heads import RotaryPairs\n"
    "probe = RotaryPairs()  # regard.see(model, text, [probe]).scores['rotary'].top()",
)
class RotaryPairs(Probe):
    """Whether the slow rotary pairs of a head tell distance: positional heads.

    The score of a query and a key is a sum over rotary pairs, c_i = (q_i k_i + q_i' k_i') scale.
    A pair is followed by the rank correlation of c_i with the distance, over queries and keys drawn
    at random; a head's score is the mean size over the slower half of its pairs, weighed by their
    share of the score's variance. The paper's exact formula is not known to us: this is ours.
    """

    key, title = "rotary", "slow pairs tell distance"
    causal_only = True
    definitions: ClassVar = {
        "variance": "sum over the slower half of |rank correlation of c_i and distance| times the "
        "pair's share of the variance of the score",
        "mean": "the plain mean of |rank correlation| over the slower half",
    }

    def __init__(
        self, draws: int = 4096, seed: int = 0, interleaved: bool = False, where: Any = None, *,
        definition: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(where, definition=definition)
        self.draws, self.seed, self.interleaved = draws, seed, interleaved
        self.pairs: dict[Site, Tensor] = {}

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Draw pairs of query and key, and correlate."""
        if call.d % 2 or call.n != call.m or call.n < 8:
            fail(
                CapabilityError, f"probes: {self.name}", f"{call.n} queries of size {call.d}",
                "self-attention of 8 tokens or more with an even head size", "pass longer text",
            )  # fmt: skip
        draw = torch.Generator().manual_seed(self.seed)
        i = torch.randint(1, call.n, (self.draws,), generator=draw)
        j = (torch.rand(self.draws, generator=draw) * (i + 1)).long()
        found = []
        far = ranks((i - j).double().repeat(call.b)[:, None])
        for c in contributions(call, i, j, self.interleaved):  # each head: [draws * b, pairs]
            found.append(correlation(ranks(c), far)[0])
            spread = c.var(0)
            found.append(spread / spread.sum().clamp(min=1e-30))
        both = torch.stack(found).view(call.h, 2, -1)
        self.pairs[site] = both[:, 0]
        slow = call.d // 4
        size, share = both[:, 0, slow:].abs(), both[:, 1, slow:]
        score = (size * share).sum(1) if self.definition == "variance" else size.mean(1)
        self.tally.add(site, score[None, :, None])


def contributions(call: Call, i: Tensor, j: Tensor, interleaved: bool = False) -> list[Tensor]:
    """Return what each rotary pair adds to the scores of some queries i and keys j, by head.

    A list of [b * draws, d / 2], the fastest pair first; over pairs they sum to q_i . k_j scale.
    """
    scale = getattr(call.rule.score.match, "scale", None) or call.d**-0.5
    q, k = call.q[:, :, i].double(), expand_heads(call.k, call.h)[:, :, j].double()
    product = q * k * scale  # [b, h, draws, d]
    if interleaved:
        pairs = product.unflatten(-1, (-1, 2)).sum(-1)
    else:
        pairs = product.unflatten(-1, (2, -1)).sum(-2)
    return [pairs[:, h].flatten(0, 1) for h in range(call.h)]


def ranks(x: Tensor) -> Tensor:
    """Ranks along the first dimension, ties sharing their mean rank.

    >>> ranks(torch.tensor([[3.0], [1.0], [3.0]])).flatten().tolist()
    [1.5, 0.0, 1.5]
    """
    order, back = x.sort(0)
    found = torch.empty_like(order, dtype=torch.double)
    places = torch.arange(len(x), dtype=torch.double)
    for column in range(x.shape[1]):
        _, which, count = order[:, column].unique_consecutive(
            return_inverse=True, return_counts=True
        )
        mean = torch.zeros(len(count), dtype=torch.double).index_add(0, which, places) / count
        found[back[:, column], column] = mean[which]
    return found


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of columns of x [n, p] with a column y [n, 1]: [1, p]; 0 where x is constant."""
    x, y = x - x.mean(0), y - y.mean(0)
    size = (x.norm(dim=0) * y.norm(dim=0)).clamp(min=1e-30)
    found: Tensor = (x * y).sum(0) / size
    return torch.where(x.norm(dim=0) > 1e-12, found, 0.0)[None]
