"""How much heads matter: by the gradient of a gate, and by taking them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.probes.scores import Scores


@register("importance", groups=("importance",))
@method(
    "sixteen_heads",
    call="from regard.probes.importance import Importance\n"
    "probe = Importance()  # regard.see(model, text, [probe]).scores['importance']",
)
class Importance(Probe):
    """How much the loss depends on each head: |dL / d gate|, with the gate of a head at 1.

    A head has a gate at each token, and the sizes of their gradients are summed: gradients of one
    gate for a whole text cancel, and rank heads differently than ablation does. Sizes compare
    across layers, except by the definition "layer".
    """

    key, title = "importance", "importance"
    kinds = ("self", "cross", "joint")
    stimulus = "loss"
    high: ClassVar[float | None] = None
    chance_free = "a gradient is that of the head itself"
    definitions: ClassVar = {
        "tokens": "sum over tokens of |dL/d gate of the token|, mean over examples",
        "layer": "mean over examples of |dL/d gate|, over the L2 norm of its layer (Michel 2019)",
        "raw": "mean over examples of |dL/d gate|, one gate for each head of an example",
    }

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where, definition=definition)
        self.gates: dict[Site, Tensor] = {}
        self.sizes: dict[Site, list[Tensor]] = {}

    def see(self, call: Call, result: Result) -> None:
        """Do nothing before the loss is known."""

    def after(self, call: Call, partial: Result) -> Result:
        """Put a gate of 1 on each head of each example, or of each of its tokens."""
        if not torch.is_grad_enabled():
            return partial
        n = call.n if self.definition == "tokens" else 1
        gate = torch.ones(call.b, call.h, n, 1, requires_grad=True, device=partial.out.device)
        self.gates[call.site] = gate
        self._counted[call.site] = self._counted.get(call.site, 0) + call.b * call.n
        return partial._replace(out=partial.out * gate.to(partial.out.dtype))

    def learn(self) -> None:
        """Read the gates after a backward pass."""
        for site, gate in self.gates.items():
            if gate.grad is not None:
                self.sizes.setdefault(site, []).append(gate.grad.abs().sum((2, 3)).cpu())
        self.gates = {}

    def result(self) -> Scores:
        """Return the mean size over examples."""
        found = {site: torch.cat(x).double().mean(0) for site, x in self.sizes.items()}
        raw = dict(found)
        if self.definition == "layer":
            found = {site: x / x.norm().clamp(min=1e-30) for site, x in found.items()}
        return self.scores(found, raw=raw)


def ablation(
    model: Any, measure: Callable[[Any], float], heads: Iterable[tuple[Site, int]]
) -> dict[tuple[Site, int], float]:
    """Return the change of `measure(model)` when each head alone is ablated."""
    plain = measure(model)
    changes = {}
    for site, head in heads:
        if not isinstance(site, Site):
            fail(RuleError, "heads", site, "pairs of a Site and a head", "take them from .top()")
        out = taken_out([(site, head)])
        with attach(model, out, check=False):
            changes[site, head] = measure(model) - plain
    return changes


@dataclass(frozen=True)
class PruningEffects:
    """What taking one head out does to a classifier, mean over a batch; 0 where nothing changes.

    `probability` is the fall of the true class' probability, `divergence` the Jensen-Shannon
    divergence of the classes' distributions in nats, `embedding` one minus the cosine of the class
    token's embeddings (NaN where none was asked for), `accuracy` the fall of the accuracy.
    """

    probability: float
    divergence: float
    embedding: float
    accuracy: float


def pruning_effects(
    model: Any, inputs: Any, labels: Tensor, heads: Iterable[tuple[Site, int]], *,
    embedding: Callable[[Any], Tensor] | None = None, others: bool = False,
) -> dict[tuple[Site, int], PruningEffects]:  # fmt: skip
    """Take each head of a classifier out alone, or all but it (`others`), and measure what changes.

    The model gives logits [b, classes], or an output with `logits`; `embedding(output)` [b, D] is
    the class token's (Li 2023).

        site = regard.attach(model).sites[0]
        effects = pruning_effects(model, images, labels, [(site, h) for h in range(site.heads)])
    """
    every = list(heads)
    whole = _classified(model, inputs, embedding)
    found = {}
    for one in every:
        gone = [x for x in every if x != one] if others else [one]
        with attach(model, taken_out(gone), check=False):
            p, state = _classified(model, inputs, embedding)
        rows, mean = torch.arange(len(labels)), (p + whole[0]) / 2
        apart = [torch.xlogy(x, x / mean.clamp(min=1e-300)).sum(-1) for x in (p, whole[0])]
        right = [(x.argmax(-1) == labels).double().mean() for x in (whole[0], p)]
        away = float("nan")
        if embedding is not None:
            away = float((1 - torch.cosine_similarity(state, whole[1], -1)).mean())
        found[one] = PruningEffects(
            float((whole[0] - p)[rows, labels].mean()), float((apart[0] + apart[1]).mean()) / 2,
            away, float(right[0] - right[1]),
        )  # fmt: skip
    return found


@torch.no_grad()
def _classified(
    model: Any, inputs: Any, embedding: Callable[[Any], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Probabilities [b, classes] of a forward and the class token's embeddings [b, D]."""
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits = getattr(output, "logits", output)
    state = logits if embedding is None else embedding(output)
    return logits.double().softmax(-1), state.double()


class _SilenceHeads(Stage):
    def __init__(self, heads: Mapping[Site, list[int]]) -> None:
        super().__init__()
        self.heads = heads

    def after(self, call: Call, partial: Result) -> Result:
        which = self.heads.get(call.site)
        if not which:
            return partial
        out = partial.out.clone()
        out[:, which] = 0
        return partial._replace(out=out)


class Averaged(Stage):
    """Replace the outputs of some heads by their mean over inputs and tokens (mean ablation).

    `means[site]` [h, e] are the mean outputs: `means_of(model, inputs)`.
    """

    def __init__(self, heads: Iterable[tuple[Site, int]], means: Mapping[Site, Tensor]) -> None:
        super().__init__()
        self.heads, self.means = list(heads), means

    def after(self, call: Call, partial: Result) -> Result:
        """Put the mean in place of each output."""
        which = [head for site, head in self.heads if site == call.site]
        if not which:
            return partial
        out = partial.out.clone()
        out[:, which] = self.means[call.site][which, None].to(out.dtype)
        return partial._replace(out=out)


def means_of(model: Any, inputs: Any) -> dict[Site, Tensor]:
    """Return the mean output of each head [h, e], over the batch and the tokens."""
    found: dict[Site, Tensor] = {}

    class Means(Stage):
        def after(self, call: Call, partial: Result) -> Result:
            found[call.site] = partial.out.detach().float().mean((0, 2))
            return partial

    with attach(model, Means(), check=False), torch.no_grad():
        model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return found


def taken_out(heads: Iterable[tuple[Site, int]]) -> Stage:
    """Build a stage in which the outputs of some heads are zero."""
    by_site: dict[Site, list[int]] = {}
    for site, head in heads:
        by_site.setdefault(site, []).append(head)
    return _SilenceHeads(by_site)
