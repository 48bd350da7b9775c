"""Policies that share keys and values among layers, or weights among layers or heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.memories.base import KeyMemory
from regard.memories.shared import Shared
from regard.memories.some_keys import SomeKeys
from regard.models.attach import attach, hook_of
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.calibration import last_hidden, need_calibration
from regard.policies.kinds import Calibrated, Select, SelectAndRun, Store
from regard.policies.registry import register
from regard.policies.without_padding import without_padding
from regard.run.counting import multiply
from regard.run.reference import weight_matrix
from regard.run.runner import run

# Names of the modules that project keys and values, where they are separate modules.
PROJECTIONS = ("k_proj", "v_proj")


class Sharing(Stage):
    """Base of sharing keys and values: `sources` maps a layer to the earlier one it reads."""

    def __init__(self, sources: dict[int, int]) -> None:
        super().__init__()
        self.sources, self._held = sources, dict[int, tuple[Tensor, Tensor]]()

    def before(self, call: Call) -> Call:
        """Record the keys and values of source layers, and pass them to the layers that share."""
        layer = call.site.layer
        if layer in self.sources:
            k, v = self._held[self.sources[layer]]
            return call.replace(k=k, v=v)
        if layer in self.sources.values():
            self._held[layer] = call.k, call.v
        return call


@method("kv_sharer", call='from regard.policies import policy; policy("kv_sharer")')
@register("kv_sharer")
@dataclass
class KVSharer(Store, Calibrated):
    """Let some layers read the keys and values of earlier, dissimilar ones instead of their own.

    Their projections (`k_proj` and `v_proj`) are not computed while the policy is active; where a
    model computes keys in one product with something else, they are computed and dropped.

    Pairs of layers are tried by the distance of their mean keys and values, the most dissimilar
    first (`order="near"` for the opposite, or "random"); a pair (later, earlier) is accepted if the
    last hidden states of calibration texts keep a mean cosine of at least `least`, until a share
    `share` of the layers shares: `regard.policies.calibrate(model, "kv_sharer", texts, to=...)`
    with texts as ids. (KVSharer, Yang et al. 2024)
    """

    what: ClassVar[str] = "shares"
    share: float = 0.25
    least: float = 0.5
    order: str = "far"
    sources: dict[int, int] = field(default_factory=dict, init=False)
    _idle: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check that there is a map, unless nothing is shared."""
        super().begin(model, sites, budget)
        if not self.sources and not self.budget.whole:
            need_calibration(self, "which layers share")
        if self.budget.whole:
            self.sources = {}
        for site in sites:
            if site.layer in self.sources:
                module = model.get_submodule(site.module)
                names = [x for x in PROJECTIONS if isinstance(getattr(module, x, None), nn.Linear)]
                self._idle.extend(skipped(getattr(module, name)) for name in names)

    def end(self) -> None:
        """Restore the projections."""
        while self._idle:
            self._idle.pop()()
        super().end()

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Read the memory of the source layer."""
        source = self.sources.get(site.layer or 0)
        return None if source is None else Shared(before[source])

    def found(self) -> dict[str, Any]:
        """Return the map."""
        return {"sources": self.sources}

    def take(self, found: dict[str, Any]) -> None:
        """Load a map."""
        self.sources = dict(found["sources"])

    def guess(self, model: Any) -> dict[str, Any]:
        """Return a map in which the last layer shares with the first."""
        last = len(hook_of(model)[1]) - 1
        return {"sources": {last: 0}}

    def learn(
        self, model: Any, inputs: Sequence[Tensor], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Try the pairs in order, and yield after each."""
        means = _MeanKeys()
        with torch.no_grad():
            with attach(model, [means], check=False) as bare:
                layers = len(bare.sites)
                for ids in inputs:
                    model(ids, use_cache=False)
            plain = [last_hidden(model, ids) for ids in inputs]
        pairs = ranked_pairs(means.mean(), self.order)
        want = max(1, int(self.share * layers))
        done = state.get("step", 0)
        self.sources = {int(a): b for a, b in state.get("sources", {}).items()}
        self.cosines = list(state.get("cosines", []))
        for step, (later, earlier) in enumerate(pairs):
            if step < done or len(self.sources) >= want:
                continue
            taken = later in self.sources or later in self.sources.values()
            if not taken:
                # Follow chains to a layer that keeps its own keys.
                trial = {**self.sources, later: self.sources.get(earlier, earlier)}
                cosine = self.closeness(model, inputs, plain, trial)
                if cosine > self.least:
                    self.sources = trial
                    self.cosines.append(cosine)
            keep({"step": step + 1, "sources": self.sources, "cosines": self.cosines})
            yield step + 1, len(pairs)

    @staticmethod
    @torch.no_grad()
    def closeness(
        model: Any, inputs: Sequence[Tensor], plain: Sequence[Tensor], sources: dict[int, int]
    ) -> float:
        """Compute the mean cosine of the last hidden states with and without sharing."""
        with attach(model, [Sharing(sources)], check=False):
            shared = [last_hidden(model, ids) for ids in inputs]
        each = [
            torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
            for a, b in zip(plain, shared, strict=True)
        ]
        return float(torch.stack(each).mean())


def skipped(projection: nn.Linear) -> Callable[[], None]:
    """Make a projection return zeros that take no memory; return a function that restores it.

    >>> made = nn.Linear(3, 4)
    >>> undo = skipped(made)
    >>> made(torch.ones(2, 3)).abs().sum().item(), undo(), made(torch.ones(2, 3)).shape
    (0.0, None, torch.Size([2, 4]))
    """

    def nothing(x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], projection.out_features)

    before = vars(projection).get("forward")
    projection.forward = nothing  # type: ignore[method-assign, assignment]  # undone below

    def undo() -> None:
        if before is None:
            del projection.forward
        else:
            projection.forward = before  # type: ignore[method-assign]  # undoes the one above

    return undo


class _MeanKeys(Stage):
    """Average keys and values of each layer over texts, for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[int, list[Any]] = {}

    def see(self, call: Call, result: Result) -> None:
        """Add the keys and values of one call."""
        total = self.sums.setdefault(call.site.layer, [0.0, 0.0])
        for place, x in enumerate((call.k, call.v)):
            total[place] = total[place] + x.detach().mean(0)

    def mean(self) -> list[list[Tensor]]:
        """Return (keys, values) [g, n, d] of each layer."""
        return [self.sums[layer] for layer in sorted(self.sums)]


def ranked_pairs(means: Sequence[Sequence[Tensor]], order: str) -> list[tuple[int, int]]:
    """Order pairs (later, earlier) of layers by the distance of their keys and values."""
    if order not in ("far", "near", "random"):
        fail(ValueRangeError, "order", repr(order), "'far', 'near' or 'random'", "pass order='far'")
    found = []
    for i in range(len(means)):
        for j in range(i):
            apart = [(a - b).norm(dim=-1).mean() for a, b in zip(means[i], means[j], strict=True)]
            found.append((float(sum(apart)) / 2, i, j))
    if order == "random":
        place = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        return [found[p][1:] for p in place]
    return [(i, j) for _, i, j in sorted(found, reverse=order == "far")]


@register("shared_weights", "shared_attention")
@method(
    "shared_attention_weights", call='from regard.policies import policy; policy("shared_weights")'
)
@dataclass
class SharedWeights(Store, SelectAndRun):
    """Let layers `first` to `last` use the attention weights of the layer before, on their values.

    These layers keep only values and compute no scores: the layer before computes the matrix of
    weights [b, h, n, m] once. For prompts longer than `longest` no matrix is held: weights are
    recomputed from its queries and keys, tile by tile. (Shared Attention, Liao and Vargas 2024)
    """

    what: ClassVar[str] = "shares"
    first: int = -1
    last: int = -1
    longest: int = 2048

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check the span of layers."""
        super().begin(model, sites, budget)
        n = len(sites)
        span = range(self.first % n, self.last % n + 1)
        self.span = [] if self.budget.whole else [x for x in span if x > 0]
        self._source: Call | None = None
        self._weights: Tensor | None = None

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Keep only values in layers of the span."""
        return SomeKeys(heads=()) if site.layer in self.span else None

    def select(self, step: Step) -> Call:
        """Record the queries and keys of the layer before the span, and use them in the span."""
        layer, call = step.site.layer or 0, step.call
        if layer in self.span and self._source is not None:
            return call.replace(q=self._source.q, k=self._source.k)
        if layer + 1 in self.span:
            self._source = call
        return call

    def run(self, call: Call) -> Tensor | None:
        """Compute the weights in the layer before the span, and use them in the span."""
        layer = call.site.layer or 0
        if layer in self.span and self._weights is not None:
            return multiply(self._weights.to(call.v.dtype), expand_heads(call.v, call.h))
        if layer + 1 not in self.span or layer in self.span:
            return None
        self._weights = None
        if call.n > self.longest:
            return None
        made = run(call, ("weights",))
        self._weights = made.weights
        return made.out

    def end(self) -> None:
        """Release the queries, keys and weights as well."""
        super().end()
        self._source = self._weights = None


@register("chai")
@method("chai", call='from regard.policies import policy; policy("chai")')
@dataclass
class Chai(Store, Select):
    """Let heads with similar attention use the weights of one of them, each with its own values.

    After the first `watch` tokens of each row, its heads are clustered by the correlation of their
    weights into a share `keep` of the number of heads; from then on every head uses the weights of
    the head nearest the center of its cluster, and where other heads lead every query head of a key
    head, its keys are dropped. This saves keys, not products: weights are recomputed for each head.
    (CHAI, Agarwal et al. 2024)
    """

    what: ClassVar[str] = "shares"
    watch: int = 16
    random_clusters: bool = False

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Keep the keys of the heads that lead."""
        return None if self.budget.whole else SomeKeys()

    def select(self, step: Step) -> Call:
        """Find the leaders in the first prompt; give each head the query and keys of its leader."""
        call, layer = step.call, step.layer
        if self.budget.whole or layer is None:
            return call
        memory = step.memory
        if memory.heads is None:
            self._lead(step)
        led = memory.leaders  # [b, h]
        k, v = expand_heads(call.k, call.h), expand_heads(call.v, call.h)
        at = call.k_positions
        if at is not None and at.dim() == 3:
            at = expand_heads(at, call.h).gather(1, led[:, :, None].expand(-1, -1, call.m))
        return call.replace(q=of_leaders(call.q, led), k=of_leaders(k, led), v=v, k_positions=at)

    def _lead(self, step: Step) -> None:
        """Find the leaders of rows that start, and drop keys once every row has its leaders."""
        call, memory = step.call, step.memory
        count = max(1, round((self.budget.share or 0.5) * call.h))
        real = step.positions[:, 0, call.m - call.n :] >= 0
        line = torch.arange(call.h, device=call.q.device)
        if memory.leaders is None:  # a row that is all padding so far has no leaders
            memory.leaders = line.repeat(call.b, 1)
        before = step.real - real.sum(1)
        for row in ((before == 0) & real.any(1)).nonzero()[:, 0].tolist():
            first = int(real[row].long().argmax())
            last = first + min(self.watch, call.n - first)
            weights = self._weights(call, row, first, last)
            memory.leaders[row] = leaders(weights, count, self.random_clusters).to(line.device)
        if bool((step.real > 0).all()):
            # The keys of a key head may be dropped where none of its query heads leads.
            memory.keep_keys_of(distinct(memory.leaders // (call.h // call.g)))

    def _weights(self, call: Call, row: int, first: int, last: int) -> Tensor:
        """Compute the weights among the first tokens of one row, [1, h, r, r]."""
        behind = call.m - call.n
        own = call.replace(
            q=call.q[row : row + 1, :, first:last],
            k=call.k[row : row + 1, :, behind + first : behind + last],
            v=call.v[row : row + 1, :, behind + first : behind + last],
            rule=without_padding(call.rule).replace(offset=0), q_positions=None, k_positions=None,
        )  # fmt: skip
        return weight_matrix(own)[0]


def of_leaders(x: Tensor, led: Tensor) -> Tensor:
    """Replace each head of x [b, h, n, d] by its leader, led [b, h]."""
    return x.gather(1, led[:, :, None, None].expand(-1, -1, *x.shape[2:]))


def distinct(heads: Tensor) -> Tensor:
    """Return the distinct heads of each row of [b, h], sorted, [b, c]; short rows repeat the last.

    >>> distinct(torch.tensor([[2, 0, 2], [1, 1, 1]])).tolist()
    [[0, 2], [1, 1]]
    """
    rows = [row.unique() for row in heads]
    most = max(map(len, rows))
    return torch.stack([torch.cat((x, x[-1:].expand(most - len(x)))) for x in rows])


def leaders(weights: Tensor, count: int, by_chance: bool = False) -> Tensor:
    """Return for each head the head that leads its cluster, [h], from weights [b, h, n, m].

    Runs k-means over unit rows, started at heads far from one another.

    >>> w = torch.rand(1, 2, 4, 4).repeat_interleave(2, 1)
    >>> leaders(w, 2).tolist()
    [0, 0, 2, 2]
    """
    x = weights.transpose(0, 1).flatten(1).float()
    x = normalize(x - x.mean(1, keepdim=True), dim=1)
    h = len(x)
    if by_chance:
        draw = torch.Generator().manual_seed(0)
        first = torch.randperm(h, generator=draw)[:count]
        own = first[torch.randint(count, (h,), generator=draw)]
        own[first] = first
        return own
    chosen = [0]
    while len(chosen) < count:  # the head farthest from those chosen
        nearest = multiply(x, x[chosen].T).amax(1)
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
    centers = x[chosen]
    for _ in range(10):
        cluster = multiply(x, centers.T).argmax(1)
        centers = torch.stack([
            normalize(x[cluster == c].mean(0), dim=0) if bool((cluster == c).any()) else centers[c]
            for c in range(count)
        ])  # fmt: skip
    near = multiply(x, centers.T)
    cluster = near.argmax(1)
    head_of = {}
    for c in cluster.unique().tolist():
        own = torch.where(cluster == c, near[:, c], -torch.inf)
        # Of heads that differ only by rounding, take the first.
        head_of[c] = int((own >= own.max() - 1e-5).nonzero()[0])
    return torch.tensor([head_of[c] for c in cluster.tolist()])
