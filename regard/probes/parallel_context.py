"""Context read in pieces that do not see each other, and what that does to the entropy of queries.

Each piece is encoded by itself, all at the same positions; the tokens after them see every piece.
In models that were not trained on this, entropy rises (Zhang 2024). Two remedies need no training:
a prefix shared by all pieces, and dropping all but the best pieces of each query.

    support = SharedPrefix(prefix, pieces) | (Causal() & queries of the tail)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ShapeError, ValueRangeError, fail
from regard.core.method import method
from regard.core.partial import Partial, merge
from regard.core.result import Result
from regard.core.support import Attribute, Causal, SharedPrefix, Support
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.api import partial
from regard.run.mass import log_weight


def parallel_contexts(lengths: Sequence[int], tail: int, prefix: int = 0) -> Support:
    """Pieces that see the prefix and themselves, and a tail that sees everything before it.

    >>> parallel_contexts((2, 1), tail=1, prefix=1).matrix(5)[0, 0].int().tolist()
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]]
    """
    apart = SharedPrefix(prefix, (*lengths, tail))
    total = prefix + sum(lengths) + tail
    late = (torch.arange(total) >= total - tail).long()
    return apart | (Causal() & Attribute(late, torch.ones_like(late)))


def parallel_positions(lengths: Sequence[int], tail: int, prefix: int = 0) -> Tensor:
    """Return positions [n]: each piece after the prefix, the tail after the longest piece.

    >>> parallel_positions((2, 1), tail=2, prefix=1).tolist()
    [0, 1, 2, 1, 3, 4]
    """
    end = prefix + max(lengths)
    pieces = [torch.arange(prefix, prefix + n) for n in lengths]
    return torch.cat([torch.arange(prefix), *pieces, torch.arange(end, end + tail)])


@method(
    "parallel_context_entropy",
    call="from regard.probes.parallel_context import ParallelContext, parallel_positions\n"
    "stage = ParallelContext((200, 180), tail=40, prefix=4)\n"
    "places = parallel_positions((200, 180), tail=40, prefix=4)[None]\n"
    "# with regard.attach(model, stage): model(ids, position_ids=places)",
)
class ParallelContext(Stage):
    """Keep the pieces of a context apart; with `best`, each query keeps that many pieces alone.

    `lengths` of the pieces, `tail` tokens that see all of them (what will be said, too) and
    `prefix` tokens that all may see. Positions are the model's: pass `parallel_positions`. The best
    pieces are chosen for each query and head by the attention on them.

    >>> stage = ParallelContext((3, 3), tail=2, best=1)
    >>> stage.total
    8
    """

    def __init__(
        self, lengths: Sequence[int], tail: int, prefix: int = 0, *, best: int | None = None,
        where: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(where)
        self.lengths, self.prefix = tuple(lengths), prefix
        self.support = parallel_contexts(lengths, tail, prefix)
        self.total = prefix + sum(lengths) + tail
        if best is not None and not 1 <= best <= len(self.lengths):
            fail(
                ValueRangeError, "best", best, f"from 1 to {len(self.lengths)} pieces",
                "pass the number of pieces that each query keeps",
            )  # fmt: skip
        self.best = best

    @property
    def starts(self) -> list[int]:
        """Where each piece starts, and where the tail does."""
        found = [self.prefix]
        for length in self.lengths:
            found.append(found[-1] + length)
        return found

    def before(self, call: Call) -> Call:
        """Keep the pieces apart."""
        if call.placed or call.m > self.total:
            fail(
                ShapeError, f"stages: {self.name}", f"{call.m} keys", f"{self.total} at most",
                "make the tail as long as what is asked and said together",
            )  # fmt: skip
        return call.replace(rule=call.rule.replace(support=call.rule.support & self.support))

    def after(self, call: Call, part: Result) -> Result:
        """Let each query keep its best pieces."""
        if self.best is None:
            return part
        prefix, pieces, tail = self.split(call)
        found = torch.stack([p.lse for p in pieces])  # type: ignore[misc]
        order = found.argsort(dim=0, descending=True, stable=True).argsort(0)
        kept = found.masked_fill(order >= self.best, -torch.inf)
        chosen = [Partial(p.out, lse) for p, lse in zip(pieces, kept, strict=True)]
        weigh = call.rule.weigh
        whole = merge(*prefix, *chosen, *tail)
        whole = weigh.apply_sink(whole) if weigh.has_sink else whole
        return part._replace(out=whole.out, lse=whole.lse)

    def split(self, call: Call) -> tuple[list[Partial], list[Partial], list[Partial]]:
        """Attention to the prefix, to each piece, and to the tail."""
        ends = [0, *self.starts, call.m]

        def to(start: int, stop: int) -> list[Partial]:
            stop = min(stop, call.m)
            if start >= stop:
                return []
            some, place = slice(start, stop), torch.arange(start, stop, device=call.q.device)
            return [partial(call.q, call.k[:, :, some], call.v[:, :, some], call.rule,
                            k_positions=place)]  # fmt: skip

        pieces = [p for a, b in itertools.pairwise(ends[1:-1]) for p in to(a, b)]
        return to(0, ends[1]), pieces, to(ends[-2], ends[-1])


@register("tail_entropy")
class TailEntropy(Probe):
    """Entropy of the last queries, over keys, and over pieces of the context.

    The score is the mean entropy in nats of the last `tail` queries; `details["pieces"]` that of
    the weight by piece, normalized to sum 1, if a `ParallelContext` is given.
    """

    key, title, high = "tail_entropy", "entropy of the last queries", None
    want = ("entropy",)
    definitions: ClassVar = {"nats": "mean over the last queries of -sum A log A (Zhang 2024)"}

    def __init__(
        self, tail: int = 16, context: ParallelContext | None = None, where: Any = None
    ) -> None:
        super().__init__(where)
        if tail < 1:
            fail(ValueRangeError, "tail", tail, "at least 1 query", "take 16")
        self.tail, self.context = tail, context
        self.pieces: dict[Site, Tensor] = {}

    def look(self, site: Site, call: Call, report: Any) -> None:
        """Keep the last rows."""
        if call.n < self.tail:
            fail(
                CapabilityError, f"probes: {self.name}", f"{call.n} queries",
                f"at least {self.tail} at once", "show the whole input at once",
            )  # fmt: skip
        late = torch.arange(call.n, device=call.q.device) >= call.n - self.tail
        self.tally.add(site, report.entropy, late[None, None])
        if self.context is not None:
            log_mass = torch.stack([p.lse for p in self.context.split(call)[1]])  # type: ignore[misc]
            share = torch.exp(log_mass - log_weight(call))[..., late].double()
            share = share / share.sum(0).clamp_min(1e-30)
            self.pieces[site] = torch.special.entr(share).sum(0).mean((0, 2)).cpu()

    def result(self) -> Scores:
        """Return the mean by head."""
        return self.scores(self.tally.means(), pieces=self.pieces)
