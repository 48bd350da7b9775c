"""Activation, attribution and path patching, head by head.

Two inputs of one shape differ in what is to be explained. `metric(output)` is a number, such as a
logit difference; the effect of a head is how much the metric is restored, or lost, when its output
is replaced by that of the other input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail
from regard.core.method import method
from regard.core.result import Result
from regard.core.support import Where
from regard.models.attach import attach, hook_of
from regard.models.residual import layers_of
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.looking import Progress, quiet
from regard.probes.scores import Scores

Metric = Callable[[Any], Tensor]
Head = tuple[Site, int]
PARTS = ("out", "q", "k", "v")


def logit_difference(right: int, wrong: int, row: int = -1) -> Metric:
    """Return the mean over the batch of logit(right) - logit(wrong) at a row."""

    def metric(output: Any) -> Tensor:
        logits = getattr(output, "logits", output)
        return (logits[:, row, right] - logits[:, row, wrong]).mean()

    return metric


class Recorded(Stage):
    """Keep q, k, v and the output of every site in one forward."""

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.parts: dict[Site, dict[str, Tensor]] = {}

    def after(self, call: Call, partial: Result) -> Result:
        """Keep them."""
        self.parts[call.site] = {
            "q": call.q.detach(), "k": call.k.detach(), "v": call.v.detach(),
            "out": partial.out.detach(),
        }  # fmt: skip
        return partial


class Patched(Stage):
    """Replace values of some heads by recorded ones, at all tokens or at some.

    `values[site][part]` is the whole tensor of that part; `heads[site]` are the heads to replace
    (key heads, for k and v).
    """

    def __init__(
        self, values: Mapping[Site, Mapping[str, Tensor]], heads: Mapping[Site, Collection[int]],
        part: str = "out", tokens: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _need_part(part, PARTS)
        self.values, self.heads, self.part = values, heads, part
        self.tokens = None if tokens is None else list(tokens)

    def _put(self, site: Site, own: Tensor) -> Tensor:
        heads = self.heads.get(site)
        if not heads:
            return own
        other = self.values[site][self.part]
        if other.shape != own.shape:
            fail(
                ShapeError, "inputs", f"{self.part} {list(own.shape)} at {site.module}",
                f"{list(other.shape)}, as in the other input", "take inputs of one length",
            )  # fmt: skip
        new, which = own.clone(), list(heads)
        if self.tokens is None:
            new[:, which] = other[:, which].to(own.dtype)
        else:
            for head in which:
                new[:, head, self.tokens] = other[:, head, self.tokens].to(own.dtype)
        return new

    def before(self, call: Call) -> Call:
        """Patch q, k or v."""
        if self.part == "out":
            return call
        own = getattr(call, self.part)
        new = self._put(call.site, own)
        return call if new is own else call.replace(**{self.part: new})

    def after(self, call: Call, partial: Result) -> Result:
        """Patch the output."""
        if self.part != "out":
            return partial
        new = self._put(call.site, partial.out)
        return partial if new is partial.out else partial._replace(out=new)


@dataclass(frozen=True)
class Effect:
    """The metric on the clean and on the corrupted input, and each head's effect as `scores`."""

    clean: float
    corrupt: float
    scores: Scores


def recorded(model: nn.Module, inputs: Any, metric: Metric | None = None) -> tuple[Recorded, float]:
    """Run one forward with a recorder attached, and return it with the metric."""
    record = Recorded()
    with attach(model, record, check=False), torch.no_grad():
        output = _run(model, inputs)
        value = float("nan") if metric is None else float(metric(output))
    return record, value


@method(
    "head_role_survey",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.circuits.patching import activation_patching, logit_difference\n"
    "effect = activation_patching(model, ids, other, logit_difference(7, 8))\n"
    "print(effect.scores.top(3))",
)
def activation_patching(
    model: nn.Module, clean: Any, corrupt: Any, metric: Metric, *, part: str = "out",
    tokens: Sequence[int] | None = None, progress: Progress | None = None,
) -> Effect:  # fmt: skip
    """Run the corrupted input with each head as in the clean run: how much of the metric returns.

    (m - m_corrupt) / (m_clean - m_corrupt): 1 brings all back. One forward for each head.
    """
    _need_part(part, PARTS)
    with quiet(model):
        record, m_clean = recorded(model, clean, metric)
        _, m_corrupt = recorded(model, corrupt, metric)
        span = _span(m_clean, m_corrupt)
        values = {}
        done, total = 0, sum(x[part].shape[1] for x in record.parts.values())
        for site, parts in record.parts.items():
            scores = []
            for head in range(parts[part].shape[1]):
                patch = Patched(record.parts, {site: [head]}, part, tokens)
                with attach(model, patch, check=False), torch.no_grad():
                    scores.append((float(metric(_run(model, corrupt))) - m_corrupt) / span)
                done += 1
                if progress is not None:
                    progress("patching", done, total)
            values[site] = torch.tensor(scores)
    source = "(m - m_corrupt) / (m_clean - m_corrupt), the head's own output from the clean run"
    return Effect(m_clean, m_corrupt, _scores("activation_patching", "brings back", values, source))


def attribution_patching(
    model: nn.Module, clean: Any, corrupt: Any, metric: Metric, *, steps: int = 1
) -> Effect:
    """Estimate activation patching from gradients: (out_clean - out_corrupt) . dm / d out.

    With `steps` > 1 the gradient is a mean along the way from the corrupted outputs to the clean
    ones (integrated gradients): of each site alone, one forward and backward for each.
    """
    if steps < 1:
        fail(ValueRangeError, "steps", steps, "at least 1", "take 1, or 5 to 100 for integrals")
    with quiet(model):
        record, m_clean = recorded(model, clean, metric)
        other, m_corrupt = recorded(model, corrupt, metric)
        span = _span(m_clean, m_corrupt)
        change = {s: record.parts[s]["out"] - x["out"] for s, x in other.parts.items()}
        slope = {s: torch.zeros_like(x) for s, x in change.items()}
        groups = [list(change)] if steps == 1 else [[s] for s in change]
        for group in groups:
            for step in range(1, steps + 1):
                share = 0.0 if steps == 1 else step / steps
                for site, grad in _slopes(model, corrupt, metric, group, change, share).items():
                    slope[site] += grad / steps
        values = {s: (change[s] * slope[s]).sum((0, 2, 3)).cpu() / span for s in change}
    source = "(out_clean - out_corrupt) . dm/dout at the corrupted input, over m_clean - m_corrupt"
    scores = _scores("attribution_patching", "brings back, by gradient", values, source)
    return Effect(m_clean, m_corrupt, scores)


class _Leaning(Stage):
    """Interpolate outputs toward others, and keep them for a gradient."""

    def __init__(self, sites: Iterable[Site], change: Mapping[Site, Tensor], share: float) -> None:
        super().__init__()
        self.sites, self.change, self.share = set(sites), change, share
        self.kept: dict[Site, Tensor] = {}

    def after(self, call: Call, partial: Result) -> Result:
        if call.site not in self.sites:
            return partial
        lean = (self.share * self.change[call.site]).requires_grad_()
        self.kept[call.site] = lean
        return partial._replace(out=partial.out + lean)


def _slopes(
    model: nn.Module, inputs: Any, metric: Metric, sites: list[Site],
    change: Mapping[Site, Tensor], share: float,
) -> dict[Site, Tensor]:  # fmt: skip
    lean = _Leaning(sites, change, share)
    with attach(model, lean, check=False), torch.enable_grad():
        value = metric(_run(model, inputs))
        grads = torch.autograd.grad(value, list(lean.kept.values()))
    return dict(zip(lean.kept, grads, strict=True))


@method(
    "circuit_reuse",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.circuits.patching import logit_difference, path_patching\n"
    "effect = path_patching(model, ids, other, logit_difference(7, 8))\n"
    "print(effect.scores.top(3))",
)
def path_patching(
    model: nn.Module, clean: Any, corrupt: Any, metric: Metric, *,
    senders: Sequence[Head] | None = None, receivers: Sequence[Head] | None = None,
    part: str = "q", freeze_mlp: bool = True, progress: Progress | None = None,
) -> Effect:  # fmt: skip
    """Return how much each sender matters through direct paths to some receivers (Wang 2022).

    1. all outputs are recorded on both inputs; 2. the clean input is run with every head frozen at
    its clean output, but the sender at its corrupted one, and the receivers' `part` (q, k or v) is
    recorded; 3. the clean input is run with these in place. Without receivers the path is to the
    logits, and step 2 is all. The score is (m - m_clean) / (m_clean - m_corrupt): -1 takes all.
    With `freeze_mlp` the MLPs stay at their clean outputs too, so that paths are direct.
    """
    _need_part(part, PARTS[1:])
    with quiet(model):
        blocks = layers_of(model, hook_of(model)[1])
        mlps = [m for layer in blocks for m in layer.rest] if freeze_mlp else []
        kept: dict[nn.Module, Any] = {}
        with _hooks(mlps, lambda m, output: kept.__setitem__(m, output)):
            good, m_clean = recorded(model, clean, metric)
        bad, m_corrupt = recorded(model, corrupt, metric)
        span = _span(m_clean, m_corrupt)
        every = [(site, h) for site, x in good.parts.items() for h in range(x["out"].shape[1])]
        values = {s: torch.full((x["out"].shape[1],), float("nan")) for s, x in good.parts.items()}
        chosen = every if senders is None else list(senders)
        for done, (site, head) in enumerate(chosen, start=1):
            m = _through(model, clean, metric, good, bad, (site, head), receivers, part, kept)
            values[site][head] = (m - m_clean) / span
            if progress is not None:
                progress("paths", done, len(chosen))
    to = "the logits" if receivers is None else f"{part} of {len(receivers)} heads"
    source = f"(m - m_clean) / (m_clean - m_corrupt), through direct paths to {to}"
    return Effect(m_clean, m_corrupt, _scores("path_patching", "by direct paths", values, source))


def _through(
    model: nn.Module, clean: Any, metric: Metric, good: Recorded, bad: Recorded, sender: Head,
    receivers: Sequence[Head] | None, part: str, mlps: Mapping[nn.Module, Any],
) -> float:  # fmt: skip
    """Return the metric where one head's change reaches the receivers alone."""
    frozen = {
        s: [h for h in range(x["out"].shape[1]) if (s, h) != sender] for s, x in good.parts.items()
    }
    still = Patched(good.parts, frozen)
    moved = Patched(bad.parts, {sender[0]: [sender[1]]})
    record = Recorded()
    with (
        attach(model, [record, still, moved], check=False), torch.no_grad(),
        _hooks(list(mlps), lambda m, output: mlps[m]),
    ):  # fmt: skip
        value = float(metric(_run(model, clean)))
    if receivers is None:
        return value
    groups: dict[Site, set[int]] = {}
    for site, head in receivers:
        parts = record.parts[site]
        key = head if part == "q" else head * parts["k"].shape[1] // parts["q"].shape[1]
        groups.setdefault(site, set()).add(key)
    put = Patched(record.parts, groups, part)
    with attach(model, put, check=False), torch.no_grad():
        return float(metric(_run(model, clean)))


class _hooks:
    """Register one function as a forward hook of several modules, in a `with`."""

    def __init__(self, modules: Sequence[nn.Module], fn: Callable[[nn.Module, Any], Any]) -> None:
        self.modules, self.fn, self.stack = modules, fn, ExitStack()

    def __enter__(self) -> None:
        for module in self.modules:
            handle = module.register_forward_hook(lambda m, args, output: self.fn(m, output))
            self.stack.callback(handle.remove)

    def __exit__(self, *error: object) -> None:
        self.stack.close()


def knockout(queries: Sequence[int], keys: Sequence[int], where: Any = None) -> Stage:
    """Build a stage that masks some keys for some queries (attention knockout, Geva 2023)."""
    asked, barred = torch.tensor(list(queries)), torch.tensor(list(keys))

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return ~(torch.isin(i, asked.to(i.device)) & torch.isin(j, barred.to(j.device)))

    return _Barred(Where(visible), where)


class _Barred(Stage):
    def __init__(self, support: Any, where: Any) -> None:
        super().__init__(where)
        self.support = support

    def before(self, call: Call) -> Call:
        rule = call.rule
        return call.replace(rule=rule.replace(support=rule.support & self.support))


def overlap(a: Collection[Head], b: Collection[Head]) -> float:
    """Shared heads over all heads of two circuits (Jaccard)."""
    one, other = set(a), set(b)
    return len(one & other) / max(1, len(one | other))


def in_circuit(scores: Scores, share: float = 0.02) -> list[Head]:
    """Return the heads with the largest effects, up or down: the top share of all, at least one."""
    heads = [h for h in scores.heads() if h.value == h.value]
    count = max(1, round(share * len(heads)))
    ranked = sorted(heads, key=lambda h: -abs(h.value))[:count]
    return [(h.site, h.head) for h in ranked]


def _need_part(part: str, known: Sequence[str]) -> None:
    if part not in known:
        fail(RuleError, "part", repr(part), f"one of {', '.join(known)}", "name what is patched")


def _run(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _span(clean: float, corrupt: float) -> float:
    if abs(clean - corrupt) < 1e-12:
        fail(
            ValueRangeError, "corrupt", "an input with the metric of the clean one",
            f"a metric other than {clean:.4g}", "corrupt a token that the answer depends on",
        )  # fmt: skip
    return clean - corrupt


def _scores(name: str, title: str, values: dict[Site, Tensor], source: str) -> Scores:
    return Scores(name, title, values, "ratio", source, low=-torch.inf, high=None)
