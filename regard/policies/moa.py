"""MoA: a window for each head whose size grows with the sequence length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.core.support import Everything, PerHead, Support
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.ring import Ring
from regard.memories.split import Split
from regard.models.attach import attach, hook_of
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.calibration import frozen, need_calibration
from regard.policies.choosing import cheapest
from regard.policies.kinds import Calibrated, Select, Store
from regard.policies.profiling import Profile
from regard.policies.registry import register
from regard.policies.streaming_heads import near, near_rows

# The rule of one head, (alpha, beta): its span at length N is alpha + beta N.
Line = tuple[int, float]
# The rules of the key heads of each layer.
Rules = dict[int, list[Line]]


def span(line: Line, n: int, block: int) -> int:
    """Return how many tokens back a head sees at length n: whole blocks, at least one, at most n.

    >>> span((0, 0.5), 96, 16), span((64, 0.0), 32, 16)
    (48, 32)
    """
    blocks = round((line[0] + line[1] * n) / block)
    return min(max(blocks, 1) * block, n)


@method("moa_sparse", call='from regard.policies import policy; policy("moa_sparse")')
@register("moa_sparse", "moa")
@dataclass
class MoASparse(Store, Select, Calibrated):
    """Keep for each key head the first `sinks` tokens and a span alpha + beta N of its own.

    Each head takes one (alpha, beta) from a grid so that the loss rises least while at every
    profiled length the heads keep a mean share `keep` of the keys. The rise is estimated from the
    gradient at each head's weights: the sum of A (D - G) / (1 - A) over the masked entries. Plans
    that trade off the lengths differently are run at the longest length, which no plan was made
    for, and the best is used: `regard.policies.calibrate(model, "moa_sparse", rows, to=...)`, with
    rows (ids [1, n], number of answer tokens at the end) of at least two lengths; the model's own
    answers replace those given. Spans are whole blocks, computed from the length of the last
    prompt. (MoA, Fu et al. 2024)
    """

    columns: ClassVar[str] = "spans"
    what: ClassVar[str] = "evicts"
    learns_from: ClassVar[str] = "answers"
    sinks: int = 64
    block: int = 64
    alphas: tuple[int, ...] = (-1024, -512, -256, -128, 0, 128, 256, 512, 1024)
    betas: tuple[float, ...] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    # {length: {layer: effects [g, distances]}}: the loss from masking, by distance in blocks.
    profile: dict[int, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)
    plans: dict[float, Rules] = field(default_factory=dict, init=False, repr=False)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Make a plan for the budget, unless every key is kept."""
        super().begin(model, sites, budget)
        share = self.budget.need_share("the keys, over all heads")
        self.rules: Rules = {}
        if self.budget.whole:
            return
        if not self.profile:
            need_calibration(self, "what each head loses with a shorter span")
        if share < self._least():
            fail(
                ValueRangeError, "keep", share, f"at least {self._least():.3f}: the sinks and one "
                "block, at the lengths of the calibration", "raise it, or calibrate with fewer "
                "sinks, smaller blocks or longer rows",
            )  # fmt: skip
        self.rules = self.plans.get(share) or self.planned(share)[0]

    # Planning

    def _kept(self, line: Line, n: int) -> int:
        """Return how many of n keys a head keeps."""
        return min(n, self.sinks + span(line, n, self.block))

    def _loss(self, effects: Tensor, line: Line, n: int) -> Tensor:
        """Sum what heads lose with a span at length n, [g], from effects by distance [g, d]."""
        if self._kept(line, n) == n:
            return effects.new_zeros(len(effects))
        return effects[:, span(line, n, self.block) // self.block :].sum(1)

    def _lines(self) -> list[Line]:
        """List the rules to choose from: one of those that agree at every profiled length."""
        found: dict[tuple[int, ...], Line] = {}
        for line in product(self.alphas, self.betas):
            found.setdefault(tuple(span(line, n, self.block) for n in self.profile), line)
        return [(0, 1.0), *(x for x in found.values() if x != (0, 1.0))]

    def planned(self, share: float) -> list[Rules]:
        """Return plans within the budget at every length, least loss at the longest first.

        Plans are made for all lengths but the longest, under several weightings of them: each is
        the best for its weights, so no other is better at all of these lengths.
        """
        lines, lengths = self._lines(), sorted(self.profile)
        planned_for, last = (lengths[:-1] or lengths), lengths[-1]
        layers = sorted(self.profile[last])
        losses = {
            n: torch.cat([
                torch.stack([self._loss(self.profile[n][x], line, n) for line in lines], 1)
                for x in layers
            ]).double() for n in lengths
        }  # fmt: skip
        heads = len(losses[last])
        costs = torch.tensor([[self._kept(x, n) / n for n in lengths] for x in lines])
        costs = costs.double().expand(heads, -1, -1)
        found: dict[tuple[int, ...], float] = {}
        for weights in _weights(len(planned_for)):
            mixed = sum(
                w / (float(losses[n].std()) + 1e-12) * losses[n]
                for w, n in zip(weights, planned_for, strict=True)
            )
            assert isinstance(mixed, Tensor)
            chosen = cheapest(mixed, costs, [share * heads] * len(lengths)).chosen
            at_last = losses[last].gather(1, torch.tensor(chosen)[:, None])
            found[chosen] = float(at_last.sum())
        plans = []
        for chosen in sorted(found, key=lambda x: found[x]):
            left = iter(chosen)
            plans.append({x: [lines[next(left)] for _ in self.profile[last][x]] for x in layers})
        return plans

    # Running

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Put the heads of one rule in one memory; `select` sets its size at the prompt."""
        if self.budget.whole:
            return None
        groups: dict[Line, list[int]] = {}
        for head, line in enumerate(self.rules[site.layer or 0]):
            groups.setdefault(line, []).append(head)
        return Split([
            (heads, Kept() if line == (0, 1.0) else Ring(1, self.sinks))
            for line, heads in groups.items()
        ])  # fmt: skip

    def select(self, step: Step) -> Call:
        """Mask in a prompt what a head will not keep, and set the sizes of the memories."""
        call, layer = step.call, step.layer
        if self.budget.whole or layer is None or not step.prompt:
            return call
        # One length for all rows of a batch: the longest.
        n = int(step.real.max())
        lines = self.rules[step.site.layer or 0]
        # The Split that `memory` built: a KeyLayer is typed to hold any memory.
        for heads, ring in layer.memory.parts:  # type: ignore[attr-defined]
            if isinstance(ring, Ring):
                ring.widen(max(span(lines[heads[0]], n, self.block), ring.window))
        if call.n == 1:
            return call
        made: dict[int, Support] = {n: Everything()}
        for line in lines:
            wide = span(line, n, self.block)
            if wide not in made:
                made[wide] = near_rows(step, wide, self.sinks)
        share = call.h // call.g
        own = tuple(made[span(lines[h // share], n, self.block)] for h in range(call.h))
        return call.replace(rule=call.rule.replace(support=call.rule.support & PerHead(own)))

    # Calibration

    def found(self) -> dict[str, Any]:
        """Return the profile and the plans."""
        return {"profile": self.profile, "plans": self.plans}

    def take(self, found: dict[str, Any]) -> None:
        """Load the profile and the plans."""
        self.profile = {int(n): dict(own) for n, own in found["profile"].items()}
        self.plans = {
            share: {layer: [(a, b) for a, b in own] for layer, own in rules.items()}
            for share, rules in found["plans"].items()
        }

    def guess(self, model: Any) -> dict[str, Any]:
        """Return an uninformed profile: nearer keys and later heads count more."""
        lengths, sites = (8 * self.block, 16 * self.block), hook_of(model)[1]
        return {"plans": {}, "profile": {
            n: {
                s.layer or 0: torch.outer(
                    torch.arange(1.0, (s.kv_heads or 1) + 1), 0.5 ** torch.arange(n // self.block)
                ) for s in sites
            } for n in lengths
        }}  # fmt: skip

    def learn(
        self, model: Any, inputs: Sequence[tuple[Tensor, int]], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Profile each row, then run the plans of each share at the longest length."""
        length_of = _grouped([ids.shape[1] for ids, _ in inputs])
        last = max(length_of.values())
        if len(set(length_of.values())) < 2:
            fail(
                ValueRangeError, "inputs", f"rows of {sorted(length_of)} tokens",
                "rows of at least two lengths: the longest chooses among plans",
                "add longer rows",
            )  # fmt: skip
        profile: dict[int, dict[int, Tensor]] = state.get("profile", {})
        plans: dict[float, Rules] = state.get("plans", {})
        done, whole = state.get("step", 0), len(inputs) + len(self.shares)
        with frozen(model):
            for step in range(done, len(inputs)):
                effects = self._effects(model, *inputs[step])
                n = length_of[inputs[step][0].shape[1]]
                held = profile.setdefault(n, {})
                for layer, own in effects.items():
                    own = pad(own, (0, -(-n // self.block) - own.shape[1]))
                    held[layer] = held.get(layer, 0) + own
                keep({"step": step + 1, "profile": profile, "plans": plans})
                yield step + 1, whole
        self.profile = profile
        longest = [row for row in inputs if length_of[row[0].shape[1]] == last]
        for step in range(max(done, len(inputs)), whole):
            share = self.shares[step - len(inputs)]
            if share >= self._least():
                tried = [(self._lost(model, longest, rules), i, rules)
                        for i, rules in enumerate(self.planned(share))]  # fmt: skip
                plans[share] = min(tried, key=lambda x: x[:2])[2]
            keep({"step": step + 1, "profile": profile, "plans": plans})
            yield step + 1, whole
        self.plans = plans

    def _least(self) -> float:
        """Return the smallest share that the rules can meet."""
        return max(min(self._kept(x, n) / n for x in self._lines()) for n in self.profile)

    def _effects(self, model: Any, ids: Tensor, answer: int) -> dict[int, Tensor]:
        """Compute the effects of masking on the loss of the model's own answer."""
        ids = own_answer(model, ids, answer)
        profile = Profile(self.block, self.sinks)
        embed = model.get_input_embeddings()
        x = embed(ids).detach().requires_grad_(True)
        with attach(model, [profile], check=False):
            _loss(model(inputs_embeds=x, use_cache=False).logits, ids, answer).backward()
        return {layer: own.float() for layer, own in profile.found.items()}

    @torch.no_grad()
    def _lost(self, model: Any, rows: Sequence[tuple[Tensor, int]], rules: Rules) -> float:
        """Compute the loss under a plan, on the model's own answers."""
        total = 0.0
        for ids, answer in rows:
            own = own_answer(model, ids, answer)
            spans = {
                x: [span(line, own.shape[1], self.block) for line in y] for x, y in rules.items()
            }
            with attach(model, [HeadSpans(spans, self.sinks)], check=False):
                total += float(_loss(model(own, use_cache=False).logits, own, answer))
        return total


@torch.no_grad()
def own_answer(model: Any, ids: Tensor, answer: int) -> Tensor:
    """Replace the last `answer` tokens with what the model itself generates."""
    prompt = ids[:, :-answer]
    cache, token, generated = None, prompt, []
    for _ in range(answer):
        out = model(token, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        generated.append(token)
    return torch.cat((prompt, *generated), 1)


def _loss(logits: Tensor, ids: Tensor, answer: int) -> Tensor:
    predicted = logits[:, -answer - 1 : -1].flatten(0, 1).float()
    return cross_entropy(predicted, ids[:, -answer:].flatten())


def _grouped(lengths: Sequence[int]) -> dict[int, int]:
    """Group lengths that differ by less than an eighth under the longest of them.

    >>> _grouped([250, 256, 510, 512])
    {512: 512, 510: 512, 256: 256, 250: 256}
    """
    found: dict[int, int] = {}
    for n in sorted(set(lengths), reverse=True):
        last = min(found.values(), default=n)
        found[n] = last if 8 * n > 7 * last else n
    return found


def _weights(many: int) -> list[tuple[float, ...]]:
    """List weightings of `many` lengths."""
    if many < 2:
        return [(1.0,) * many]
    total = 4
    shares = [w for w in product(range(total + 1), repeat=many) if sum(w) == total]
    # A little weight on each length, so that ties at one length are broken by the others.
    return [tuple(x / total + 0.01 for x in w) for w in shares]


class HeadSpans(Stage):
    """Limit key heads to the sinks and their spans: {layer: [span of each key head]}."""

    def __init__(self, spans: dict[int, list[int]], sinks: int) -> None:
        super().__init__()
        self.spans, self.sinks = spans, sinks

    def before(self, call: Call) -> Call:
        """Add the spans to the rule."""
        own, share = self.spans[call.site.layer or 0], call.h // call.g
        made = PerHead(tuple(near(own[h // share], self.sinks) for h in range(call.h)))
        return call.replace(rule=call.rule.replace(support=call.rule.support & made))
