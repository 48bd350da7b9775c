"""Groups of layers that attend to distant tokens alike, and keep their keys once: PoD."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.method import method
from regard.core.partial import Partial, merge
from regard.core.result import Result
from regard.memories.base import KeyMemory
from regard.memories.near_keys import NearKeys
from regard.models.attach import attach, hook_of
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.calibration import need_calibration
from regard.policies.kinds import Calibrated, SelectAndJoin, Store
from regard.policies.prompts import last_rows
from regard.policies.registry import register
from regard.policies.streaming_heads import near_rows
from regard.policies.without_padding import without_padding
from regard.run.runner import partial_of


@method("pod_proximal_distant", call='from regard.policies import policy; policy("pod")')
@register("pod", "pod_proximal_distant")
@dataclass
class PoD(Store, SelectAndJoin, Calibrated):
    """Keep keys of distant tokens once for a group of layers with similar weights.

    Every layer has its own keys of the first `sinks` and the last `window` tokens, and its own
    values. For the others it uses the scores of the first layer of its group (queries and keys):
    one softmax over both, which is the merge of two partials. Groups grow from the first layer up
    while at least a share `share` of the heads weigh distant tokens as that layer's do: 1 - JS of
    the last queries' weights, in bits, above `like`:
    `regard.policies.calibrate(model, "pod", texts, to=...)` with texts as ids longer than sinks and
    window. The paper fine-tunes the model afterwards, which is not done here. (PoD, Ma et al. 2024)
    """

    what: ClassVar[str] = "shares"
    sinks: int = 16
    window: int = 4080
    like: float = 0.5
    share: float = 0.5
    queries: int = 16
    sources: dict[int, int] = field(default_factory=dict, init=False)
    found_none: bool = field(default=False, init=False)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Require groups, unless everything is kept."""
        super().begin(model, sites, budget)
        if not self.sources and not self.budget.whole and not self.found_none:
            need_calibration(self, "which layers have similar weights")
        self.shared = {} if self.budget.whole else self.sources

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Keep near keys alone, where another layer has the others."""
        return NearKeys(self.window, self.sinks) if site.layer in self.shared else None

    def select(self, step: Step) -> Call:
        """Keep the call of the first layer of a group; select the near keys of the others."""
        layer, call = step.site.layer or 0, step.call
        self.held.pop("far", None)
        if not self.shared or step.layer is None:
            return call
        if call.n == 1:  # windows need the position of the query
            call = call.replace(q_positions=torch.tensor([step.seen - 1 - call.rule.offset]))
        if layer not in self.shared:
            self.held["source"] = call
            return step.call
        if call.rule.weigh.has_sink:
            fail(
                CapabilityError, f"policy {self.name!r}", "weights with a sink",
                "a plain softmax", "use another policy",
            )  # fmt: skip
        k, v, at = step.memory.near()
        rule = call.rule if at is None else without_padding(call.rule)
        close = call.replace(k=k, v=v, rule=rule, k_positions=at)
        if step.seen <= self.window + self.sinks:  # all keys are near: the layer's own attention
            return close
        beside = near_rows(step, self.window, self.sinks)
        source, support = self.held["source"], call.rule.support
        self.held["far"] = call.replace(
            q=source.q, k=source.k, k_positions=source.k_positions,
            rule=call.rule.replace(support=support & ~beside),
        )  # fmt: skip
        rule = close.rule.replace(support=close.rule.support & beside)
        return close.replace(rule=rule, q_positions=call.q_positions)

    def join(self, step: Step, partial: Partial) -> Partial:
        """Merge the attention to distant tokens, by the first layer's scores."""
        far = self.held.pop("far", None)
        return partial if far is None else merge(partial, partial_of(far))

    # Calibration

    def found(self) -> dict[str, Any]:
        """Return the groups."""
        return {"sources": self.sources}

    def take(self, found: dict[str, Any]) -> None:
        """Load groups."""
        self.sources = {int(a): int(b) for a, b in found["sources"].items()}
        self.found_none = not self.sources

    def guess(self, model: Any) -> dict[str, Any]:
        """Return groups for tests: the last layer shares with the one before."""
        last = len(hook_of(model)[1]) - 1
        return {"sources": {last: last - 1}}

    def learn(
        self, model: Any, inputs: Sequence[Tensor], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Compare layers on one text after another; yield progress after each."""
        least = self.sinks + self.window
        total: Any = state.get("total", 0.0)
        for step in range(state.get("step", 0), len(inputs)):
            if inputs[step].shape[1] <= least:
                fail(
                    CapabilityError, "inputs", f"a text of {inputs[step].shape[1]} tokens",
                    f"more than the {least} near tokens", "pass longer texts",
                )  # fmt: skip
            stage = _Distant(self.sinks, self.window, self.queries)
            with attach(model, [stage], check=False), torch.no_grad():
                model(inputs[step], use_cache=False)
            total = total + alike(torch.stack([stage.found[x] for x in sorted(stage.found)]))
            keep({"step": step + 1, "total": total})
            yield step + 1, len(inputs)
        self.sources = grouped((total / len(inputs) > self.like).float().mean(-1), self.share)
        self.found_none = not self.sources


class _Distant(Stage):
    """Weights of the last queries on distant tokens, renormalized: {layer: [h, rows, m]}."""

    def __init__(self, sinks: int, window: int, rows: int) -> None:
        super().__init__()
        self.sinks, self.window, self.rows = sinks, window, rows
        self.found: dict[int, Tensor] = {}

    def see(self, call: Call, result: Result) -> None:
        """Record the rows of one layer."""
        weights = last_rows(call, self.rows)[0, :, :, self.sinks :]
        far = weights[..., : call.m - self.sinks - self.window - self.rows + 1].double()
        far = far if far.shape[-1] else weights[..., :1].double()
        self.found[call.site.layer or 0] = far / far.sum(-1, keepdim=True).clamp(min=1e-30)


def alike(p: Tensor) -> Tensor:
    """Return the similarity 1 - JS (bits) of any two layers: p [l, h, r, m] to [l, l, h].

    >>> p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(3, 1, 1, 2)
    >>> alike(p)[0].flatten().tolist()
    [1.0, 1.0, 0.0]
    """

    def size(x: Tensor) -> Tensor:
        return -torch.xlogy(x, x).sum(-1) / torch.log(torch.tensor(2.0))

    own = size(p)
    both = torch.stack([size((p + one) / 2) for one in p])
    return (1 - (both - (own[:, None] + own) / 2)).mean(-1)


def grouped(likeness: Tensor, least: float) -> dict[int, int]:
    """Group layers in a row with the first of them, while they are similar: {layer: first}.

    >>> grouped(torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.9], [0.1, 0.9, 1.0]]), 0.5)
    {1: 0}
    """
    found: dict[int, int] = {}
    first = 0
    for layer in range(1, len(likeness)):
        if float(likeness[first, layer]) > least:
            found[layer] = first
        else:
            first = layer
    return found
