"""Attention sinks, and the massive activations that cause them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.core.partial import merge
from regard.core.support import ChosenKeys
from regard.models.site import Site
from regard.probes.base import Probe, looks_ahead
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.runner import partial_of
from regard.run.survey import survey


class _Received(Probe):
    """Mean weight on each key over the queries that may attend to it, by input."""

    want: Sequence[str] = ("received",)

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where, definition=definition)
        self.mean: dict[Site, list[Tensor]] = {}

    def look(self, site: Site, call: Call, report: Any) -> None:
        """Keep the mean weight of every key [b, h, m]; skip decoding steps."""
        if call.n > 1:
            mean = report.received / report.seen.clamp(min=1)
            self.mean.setdefault(site, []).append(mean.float().cpu())


@register("sink", groups=("sinks", "roles"))
@method(
    "attention_sink_metric",
    call="from regard.probes.sinks import SinkRate\n"
    "probe = SinkRate(epsilon=0.3)  # regard.see(model, text, [probe]).scores['sink'].details",
)
class SinkRate(_Received):
    """Mean weight on one key over the queries that may attend to it, and the rate over a bound.

    alpha_k is the mean of A[i, k] over the queries i >= k among the first `length` tokens: it falls
    as texts grow, so the length is part of the measure. The score of a head is alpha of the key at
    `position`; `details["rate"]` is the share of heads and inputs with alpha_k > epsilon, and
    `details["by_position"]` that of each of the first eight keys.
    """

    key, title = "sink", "sink"
    want: Sequence[str] = ()
    definitions: ClassVar = {"alpha": "mean weight on the first key, of 64 tokens (Gu 2024)"}

    def __init__(
        self, position: int = 0, epsilon: float = 0.3, length: int = 64, where: Any = None
    ) -> None:
        super().__init__(where)
        if not 0 < epsilon < 1:
            fail(ValueRangeError, "epsilon", epsilon, "a share between 0 and 1", "take 0.3")
        if length < 2:
            fail(ValueRangeError, "length", length, "at least 2 tokens", "take 64")
        self.position, self.epsilon, self.length = position, epsilon, length

    def tokens_of(self, call: Call) -> int:
        """Return the first tokens alone, where the future is hidden."""
        return min(self.length, call.n) if not looks_ahead(call) else call.n

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Survey the first tokens alone; where the future is seen, all of them count."""
        if not looks_ahead(call) and not call.placed and call.n == call.m:
            q, k, v = (x[:, :, : self.length] for x in (call.q, call.k, call.v))
            call = call.replace(q=q, k=k, v=v)
        report = survey(call.q, call.k, call.v, call.rule, want=("received",))
        super().look(site, call, report)

    def result(self) -> Scores:
        """Alpha by head, and the rate over heads and inputs."""
        short = min((x.shape[-1] for each in self.mean.values() for x in each), default=0)
        if self.mean and not -short <= self.position < short:
            fail(
                ValueRangeError, "position", self.position, f"a key among {short}",
                "name a key that every input has",
            )  # fmt: skip
        alpha = {
            site: torch.cat([x[..., self.position] for x in each])  # [inputs, h]
            for site, each in self.mean.items()
        }
        over = [(x > self.epsilon).double().flatten() for x in alpha.values()]
        rate = float(torch.cat(over).mean()) if over else float("nan")
        return self.scores(
            {site: x.mean(0) for site, x in alpha.items()}, rate=rate, epsilon=self.epsilon,
            position=self.position,
            by_position=sink_rates(self, range(min(8, short)), self.epsilon),
        )  # fmt: skip


@register("strongest_sink", groups=("sinks",))
class StrongestSink(_Received):
    """The key with the largest mean weight over the queries that may attend to it.

    Only keys that at least `least` queries may attend to count, which leaves out the last ones.
    """

    key, title = "strongest_sink", "strongest sink"
    definitions: ClassVar = {
        "alpha": "largest mean weight on any key visible to 16 queries or more"
    }

    def __init__(self, least: int = 16, where: Any = None) -> None:
        super().__init__(where)
        self.least = least
        self.seen: dict[Site, list[Tensor]] = {}

    def look(self, site: Site, call: Call, report: Any) -> None:
        """Keep the weights, and how many queries may attend to each key."""
        super().look(site, call, report)
        if call.n > 1:
            self.seen.setdefault(site, []).append(report.seen.cpu())

    def result(self) -> Scores:
        """Return the largest mean weight of each head, and the key of it."""
        values, keys = {}, {}
        for site, each in self.mean.items():
            best = [
                torch.where(seen >= min(self.least, int(seen.max())), mean, -1.0).max(-1)
                for mean, seen in zip(each, self.seen[site], strict=True)
            ]
            values[site] = torch.cat([x.values for x in best]).mean(0)
            keys[site] = torch.cat([x.indices for x in best]).mode(0).values.tolist()
        return self.scores(values, keys=keys)


@register("massive_activations")
@method(
    "massive_activations",
    call="from regard.probes.sinks import MassiveActivations\n"
    "probe = MassiveActivations()  # regard.see(model, text, [probe]); probe.found",
)
class MassiveActivations(Probe):
    """States far larger than all others: |x| > 100 and over 1,000 times the median of the layer.

    As a probe it scores a head by the weight on the tokens that carry such states; `found` lists
    (layer, token, feature, value).
    """

    key, title = "massive_activations", "weight on massive states"
    definitions: ClassVar = {"bound": "|x| > 100 and |x| >= 1000 median |x| (Sun 2024)"}
    want = ("received",)

    def __init__(self, where: Any = None, *, least: float = 100.0, times: float = 1000.0) -> None:
        super().__init__(where)
        self.least, self.times = least, times
        self.found: list[tuple[str, int, int, float]] = []
        self.largest: dict[str, tuple[float, float]] = {}
        self._handles: list[Any] = []
        self._kept: list[tuple[Site, Tensor]] = []

    @classmethod
    def of(cls, blocks: nn.ModuleList) -> MassiveActivations:
        """Watch the outputs of blocks, apart from any attachment; use it in a `with`."""
        watch = cls()
        watch._watch((f"layer {i}", block) for i, block in enumerate(blocks))
        return watch

    def __enter__(self) -> MassiveActivations:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, model: Any, sites: Any) -> None:
        """Watch the modules that contain attention: their outputs are the states after a layer."""
        super().begin(model, sites)
        paths = dict.fromkeys(site.module.rpartition(".")[0] for site in sites)
        self._watch((path, model.get_submodule(path)) for path in paths if path)

    def end(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, blocks: Any) -> None:
        for name, block in blocks:
            self._handles.append(block.register_forward_hook(self._seen(name)))

    def _seen(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if isinstance(state, Tensor) and state.dim() == 3:
                size = state.detach().float().abs()
                median = float(size.median())
                self.largest[name] = (float(size.max()), median)
                large = (size > self.least) & (size >= self.times * median)
                for b, token, feature in large.nonzero().tolist():
                    x = float(state[b, token, feature])
                    self.found.append((name, token, feature, x))

        return hook

    def look(self, site: Site, call: Call, report: Any) -> None:
        """Keep what each key got."""
        share = report.received / max(call.n, 1)
        self._kept.append((site, share.float().mean(0).cpu()))

    def result(self) -> Scores:
        """Return the share of all weight on tokens with massive states."""
        tokens = sorted({token for _, token, _, _ in self.found})
        values = {
            site: share[:, [t for t in tokens if t < share.shape[1]]].sum(1)
            for site, share in self._kept
        }
        return self.scores(values, found=self.found, largest=self.largest)


def output_split(call: Call, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split an output [b, h, n, e] into what some keys give it and what all others do.

    Both are sums of weights times values, with the weights that the whole row has: their sum is the
    output. Where the keys are those of massive states, the first part is nearly the same for every
    query (Sun 2024).

    >>> from regard.run.runner import run
    >>> q = torch.randn(1, 2, 5, 4)
    >>> call = Call.of(q, q, q)
    >>> torch.allclose(sum(output_split(call, [0, 3])), run(call).out, atol=1e-6)
    True
    """
    if call.rule.weigh.has_sink or call.rule.weigh.sums:
        fail(
            CapabilityError, "call", f"weights by {call.rule.weigh}", "a plain softmax",
            "split what has shares of one unit",
        )  # fmt: skip
    chosen = ChosenKeys(torch.tensor(list(keys)).view(1, 1, 1, -1))
    support = call.rule.support
    parts = [
        partial_of(call.replace(rule=call.rule.replace(support=support & side)))
        for side in (chosen, ~chosen)
    ]
    whole = merge(*parts).lse
    assert whole is not None
    made = []
    for part in parts:
        assert part.lse is not None
        share = torch.exp(part.lse - whole.masked_fill(whole == -torch.inf, 0.0))
        made.append(part.out * share[..., None].to(part.out.dtype))
    return made[0], made[1]


def sink_rates(probe: _Received, positions: Sequence[int], epsilon: float = 0.3) -> list[float]:
    """Share of heads and inputs whose mean weight on each of some positions is over a bound."""
    found = []
    for k in positions:
        over = [(x[..., k] > epsilon).double().flatten() for e in probe.mean.values() for x in e]
        found.append(float(torch.cat(over).mean()))
    return found
