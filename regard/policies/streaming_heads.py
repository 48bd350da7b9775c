"""Policies that give some heads all keys and others a window: DuoAttention and LServe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.core.support import ChosenKeys, Everything, PerHead, Sinks, Support, Window
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.ring import Ring
from regard.memories.split import Split
from regard.memories.stores import Plain
from regard.memories.summaries import Bounds
from regard.models.attach import attach, hook_of
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Policy, Step
from regard.policies.calibration import frozen, last_hidden, need_calibration
from regard.policies.kinds import Calibrated, Select, Store
from regard.policies.registry import register
from regard.policies.scoring import rank_of, together
from regard.policies.selecting import Selecting, page_worth, whole_pages
from regard.run.runner import run


def near(window: int, sinks: int) -> Support:
    """Return a support of the newest `window` keys and the first `sinks`."""
    return Window(window, 1) | Sinks(sinks) if sinks else Window(window, 1)


def near_rows(step: Step, window: int, sinks: int) -> Support:
    """Return `near` for rows that may start with padding: the sinks are the tokens after it."""
    if not sinks or not bool((step.real < step.seen).any()):
        return near(window, sinks)
    rank = rank_of(step.positions[:, :1])
    first = torch.where((rank >= 0) & (rank < sinks), step.positions[:, :1], 1 << 60)
    first = first.sort(-1).values[..., :sinks]
    listed = torch.where(first < 1 << 60, first, -1)[:, :, None]
    return Window(window, 1) | ChosenKeys(listed)


@method("duo_attention", call='from regard.policies import policy; policy("duo_attention")')
@register("duo_attention", "duo")
@dataclass
class DuoAttention(Store, Select, Calibrated):
    """Keep every key for retrieval heads; sinks and a window for all others, also in prompts.

    `keep` is the share of key heads that retrieve: those with the highest gates a. Gates are found
    by computing out = a full + (1 - a) streaming in every head, and minimizing the squared
    difference of the last hidden states on answers to passkeys + `weight` mean a:
    `regard.policies.calibrate(model, "duo_attention", rows, to=...)`.
    (DuoAttention, Xiao et al. 2024)
    """

    what: ClassVar[str] = "evicts"
    learns_from: ClassVar[str] = "answers"
    sinks: int = 4
    recent: int = 64
    weight: float = 0.1
    steps: int = 150
    rate: float = 0.02
    gates: dict[int, list[float]] = field(default_factory=dict, init=False)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Turn gates into roles."""
        super().begin(model, sites, budget)
        self.budget.need_share("the heads that retrieve")
        if not self.gates and not self.budget.whole:
            need_calibration(self, "which heads retrieve")
        self.roles = self._roles()

    def _roles(self) -> dict[int, list[bool]]:
        """Return which key heads retrieve: those with the best gates, as many as `keep` allows."""
        ranked = sorted(
            ((a, -layer, -head) for layer, own in self.gates.items() for head, a in enumerate(own)),
            reverse=True,
        )
        share = self.budget.share or 0.0
        chosen = {(-la, -h) for _, la, h in ranked[: max(1, round(share * len(ranked)))]}
        return {
            layer: [(layer, head) in chosen for head in range(len(own))]
            for layer, own in self.gates.items()
        }

    def heads(self, site: Site) -> tuple[list[int], list[int]]:
        """Return the key heads of a site that retrieve, and those that stream."""
        roles = self.roles.get(site.layer or 0, [True] * (site.kv_heads or 1))
        return [h for h, x in enumerate(roles) if x], [h for h, x in enumerate(roles) if not x]

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Split the heads between a full memory and a ring."""
        if self.budget.whole:
            return None
        retrieve, stream = self.heads(site)
        return Split([(retrieve, Kept()), (stream, Ring(self.recent, self.sinks))])

    def select(self, step: Step) -> Call:
        """Mask in a prompt what streaming heads will not keep."""
        call, layer = step.call, step.layer
        if self.budget.whole or layer is None or call.n == 1:
            return call
        _, stream = self.heads(step.site)
        if not stream:
            return call
        window = near_rows(step, self.recent, self.sinks)
        share = call.h // call.g
        own = tuple(window if h // share in stream else Everything() for h in range(call.h))
        return call.replace(rule=call.rule.replace(support=call.rule.support & PerHead(own)))

    # Calibration

    def found(self) -> dict[str, Any]:
        """Return the gates."""
        return {"gates": self.gates}

    def take(self, found: dict[str, Any]) -> None:
        """Load gates."""
        self.gates = {int(layer): list(own) for layer, own in found["gates"].items()}

    def guess(self, model: Any) -> dict[str, Any]:
        """Return uninformed gates: later heads first."""
        sites = hook_of(model)[1]
        return {"gates": {s.layer: [h / 9 for h in range(s.kv_heads or 1)] for s in sites}}

    def learn(
        self, model: Any, inputs: Sequence[tuple[Tensor, int]], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Optimize the gates on rows (ids [b, n], number of answer tokens); yield each step."""
        sites = hook_of(model)[1]
        gated = Gates(sites, self.sinks, self.recent)
        for parameter in gated.gates.values():
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(list(gated.gates.values()), lr=self.rate)
        done = 0
        if state:
            done = state["step"]
            for layer, held in state["gates"].items():
                gated.gates[layer].data.copy_(held)
            optimizer.load_state_dict(state["optimizer"])
        with frozen(model):
            for step in range(done, self.steps):
                ids, answer = inputs[step % len(inputs)]
                with torch.no_grad():
                    full = last_hidden(model, ids)[:, -answer - 1 : -1]
                with attach(model, [gated], check=False):
                    ours = last_hidden(model, ids)[:, -answer - 1 : -1]
                apart = (ours - full).square().mean() / full.square().mean()
                size = torch.cat(list(gated.gates.values())).mean()
                optimizer.zero_grad()
                (apart + self.weight * size).backward()
                optimizer.step()
                for parameter in gated.gates.values():
                    parameter.data.clamp_(0, 1)
                held = {layer: p.detach().clone() for layer, p in gated.gates.items()}
                keep({"step": step + 1, "gates": held, "optimizer": optimizer.state_dict()})
                yield step + 1, self.steps
        self.gates = {layer: p.detach().tolist() for layer, p in gated.gates.items()}


class Gates(Stage):
    """Mix full and streaming attention in every head: out = a full + (1 - a) streaming."""

    def __init__(self, sites: Sites, sinks: int, recent: int, start: float = 1.0) -> None:
        super().__init__()
        self.sinks, self.recent = sinks, recent
        self.gates = {
            s.layer or 0: nn.Parameter(torch.full((s.kv_heads or 1,), start)) for s in sites
        }

    def after(self, call: Call, partial: Result) -> Result:
        """Run the call again with the window, and mix."""
        support = call.rule.support & near(self.recent, self.sinks)
        streaming = run(call.replace(rule=call.rule.replace(support=support))).out
        gate = expand_heads(self.gates[call.site.layer or 0][None], call.h)[..., None, None]
        gate = gate.to(partial.out.dtype)
        return partial._replace(out=gate * partial.out + (1 - gate) * streaming, lse=None)


@method("lserve", call='from regard.policies import policy; policy("lserve")')
@register("lserve")
@dataclass
class LServe(DuoAttention, Selecting):
    """Let half the key heads stream; the others read the best pages of all keys when decoding.

    Pages of `page` tokens are scored by the largest bound sum_c max(q_c min_c, q_c max_c) of their
    logical pages of `logical` tokens; the first and the newest are always read; a choice is reused
    for `every` steps. `keep` is the budget of tokens that a dense head reads; `streaming` is the
    share of heads that stream, by the gates of DuoAttention. (LServe, Yang et al. 2025)
    """

    columns: ClassVar[str] = "pages"
    accepts: ClassVar[tuple[str, ...]] = ("duo_attention",)
    page: int = 64
    logical: int = 16
    every: int = 4
    streaming: float = 0.5

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Turn gates into roles, independent of the budget of pages."""
        Policy.begin(self, model, sites, budget)
        if not self.gates and not self.budget.whole and self.streaming:
            need_calibration(self, "which heads retrieve")
        pages, self.budget = self.budget, type(self.budget)(share=1.0 - self.streaming)
        self.roles = self._roles()
        self.budget = pages

    def select(self, step: Step) -> Call:
        """Choose pages for the dense heads when decoding."""
        if step.n > 1 or self.budget.whole:
            return DuoAttention.select(self, step)
        return Selecting.select(self, step)

    def index(self) -> Bounds:
        """Keep bounds of logical pages."""
        return Bounds(self.logical)

    def _index(self, step: Step) -> Any:
        dense, _ = self.heads(step.site)
        return super()._index(step) if dense else None

    def seen_by_index(self, step: Step, k: Tensor) -> Tensor:
        """Return the keys of the dense heads."""
        dense, _ = self.heads(step.site)
        return k[:, dense]

    @property
    def alike(self) -> bool:
        """Return False: streaming heads read every key they keep."""
        return False

    def worth(self, step: Step, index: Any) -> Tensor:
        """Score keys of the dense heads by their pages, [b, dense, m]; newer keys come first."""
        call, layer = step.call, step.layer
        dense, _ = self.heads(step.site)
        assert layer is not None
        held = layer.extra.get(f"{self.name} pages")
        since = call.m - (0 if held is None else len(held))
        if held is None or since >= self.every or since < 0:
            q = call.q.unflatten(1, (call.g, -1))[:, dense].flatten(1, 2)
            score = page_worth(q, index, self.page, call.m, len(dense))
            own = score.repeat_interleave(self.page, -1)[..., : call.m]
            held = Plain()
            held.append(own[..., None])
            layer.extra[f"{self.name} pages"], since = held, 0
        own = held.read()[..., 0]
        top = torch.finfo(own.dtype).max
        return torch.cat((own, own.new_full((*own.shape[:2], since), top)), -1)

    def choose(self, step: Step, index: Any, rows: Tensor) -> Tensor | None:
        """Choose whole pages for the dense heads; streaming heads read all they have."""
        dense, _ = self.heads(step.site)
        if not dense or step.layer is None:
            return None
        at, page = step.positions, self.page
        worth = self.worth(step, index)
        score = torch.nn.functional.pad(worth, (0, -worth.shape[-1] % page), value=-torch.inf)
        score = score.unflatten(-1, (-1, page)).amax(-1)
        slots = torch.where(at >= 0, torch.arange(at.shape[2], device=at.device), -1)
        own = whole_pages(score, rows, page, at[:, dense])
        slots[:, dense] = -1
        slots = torch.nn.functional.pad(slots, (0, max(0, own.shape[2] - slots.shape[2])), value=-1)
        slots[:, dense, : own.shape[2]] = own
        return together(slots)
