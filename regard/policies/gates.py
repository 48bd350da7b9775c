"""Learned gates that select the tiles of a prompt to compute: SeerAttention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.memories.stores import Plain
from regard.models.attach import attach, hook_of
from regard.models.rotary import Turn, rotations_of
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.calibration import need_calibration
from regard.policies.kinds import Calibrated, Prefill
from regard.policies.registry import register
from regard.policies.tiling import causal_tiles, tile_places
from regard.run.counting import multiply
from regard.run.survey import survey_call


def pooled(x: Tensor, block: int, start: int, how: str) -> Tensor:
    """Pool x [b, h, n, d] over blocks, its first token at `start`: "mean", "amax" or "amin".

    >>> pooled(torch.arange(3.0).view(1, 1, 3, 1), 2, 1, "mean").flatten().tolist()
    [0.0, 1.5]
    """
    before, after = start % block, -(start + x.shape[2]) % block
    fill = {"mean": 0.0, "amax": -torch.inf, "amin": torch.inf}[how]
    tiles = pad(x, (0, 0, before, after), value=fill).unflatten(2, (-1, block))
    if how != "mean":
        found: Tensor = tiles.amax(3) if how == "amax" else tiles.amin(3)
        return found
    real = pad(torch.ones(x.shape[2], device=x.device), (before, after)).view(-1, block).sum(1)
    mean: Tensor = tiles.sum(3) / real[:, None].to(x)
    return mean


@dataclass
class Gate:
    """The gate of a layer: projections of pooled queries [h, d, r] and pooled keys [g, 3 d, r]."""

    q: Tensor
    k: Tensor

    @staticmethod
    def of(site: Site, size: int) -> Gate:
        """Build a gate that compares means."""
        h, g = site.heads or 1, site.kv_heads or site.heads or 1
        one = torch.eye(size)
        return Gate(one.repeat(h, 1, 1), torch.cat((0 * one, 0 * one, one)).repeat(g, 1, 1))

    def scores(self, q: Tensor, k: Tensor, start: int, block: int, turn: Turn) -> Tensor:
        """Return log-probabilities [b, h, t_q, t_k] of tiles, of unrotated q, k [b, h or g, n, d].

        G = softmax(turned(Q W_q) turned(K W_k)^T / sqrt(r)), Q the means of blocks, K the largest,
        the least and the mean of each channel, rotated to where their blocks begin.
        """
        q_mean = pooled(q.float(), block, start, "mean")
        k_all = torch.cat([pooled(k.float(), block, 0, x) for x in ("amax", "amin", "mean")], -1)
        rows = torch.arange(q_mean.shape[2], device=q.device) + start // block
        cols = torch.arange(k_all.shape[2], device=q.device)
        q_made = turn.turn(multiply(q_mean, self.q.to(q.device)), rows * block)
        k_made = turn.turn(multiply(k_all, self.k.to(q.device)), cols * block)
        scores = (
            multiply(q_made, expand_heads(k_made, q.shape[1]).transpose(2, 3)) * q.shape[3] ** -0.5
        )
        scores = scores.masked_fill(cols > rows[:, None], -torch.inf)
        logs: Tensor = scores.log_softmax(-1)
        return logs


@method("seer_attention", call='from regard.policies import policy; policy("seer_attention")')
@register("seer_attention", "seer")
@dataclass
class SeerAttention(Prefill, Calibrated):
    """Compute the tiles that a gate of each head, trained on the map of tiles, selects.

    Gates read pooled queries and keys before their rotation (see `Gate.scores`). They learn the
    largest weight of each tile, normalized by row: KL(target || gate), with the model frozen:
    `regard.policies.calibrate(model, "seer_attention", texts, to=...)` with texts as ids [b, n].
    A row of tiles takes the best (1 - sqrt(1 - keep)) of all, so that `keep` of the triangle is
    computed; with a `threshold`, those of a probability above it. The last row is always whole.
    (SeerAttention, Gao et al. 2024)
    """

    threshold: float | None = None
    rate: float = 1e-3
    steps: int = 200
    gates: dict[int, Gate] = field(default_factory=dict, init=False, repr=False)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Require gates, and find the model's rotations."""
        super().begin(model, sites, budget)
        if self.budget.whole:
            return
        if not self.gates:
            need_calibration(self, "trained gates")
        self.turns = rotations_of(model, self.gates)

    def select(self, step: Step) -> Call:
        """Record the positions of keys, and select tiles in a prompt."""
        if self.budget.whole:
            return step.call
        self._at = self._places(step)
        return super().select(step)

    def _places(self, step: Step) -> Tensor:
        """Return the positions of the keys, [b or 1, m]."""
        forward = step.call.forward
        now = None if forward is None else forward.positions
        if now is None:
            now = torch.arange(step.seen - step.n, step.seen, device=step.call.k.device)[None]
        if step.layer is None:
            return now
        held = step.layer.extra.setdefault(f"{self.name} places", Plain())
        held.append(now.expand(step.call.b, -1)[:, None, :, None].to(torch.int32))
        return held.read()[:, 0, :, 0].long()

    def tiles(self, call: Call, keep: float) -> Tensor:
        """Select tiles by the gate."""
        gate, turn = self.gates[call.site.layer or 0], self.turns[call.site.layer or 0]
        q = turn.back(call.q, self._at[:, call.m - call.n :])
        k = turn.back(call.k, self._at)
        found = gate.scores(q, k, call.rule.offset, self.block, turn)
        if self.threshold is not None:
            chosen = found > (math.log(self.threshold) if self.threshold > 0 else -math.inf)
        else:
            count = max(1, round((1 - (1 - keep) ** 0.5) * found.shape[3]))
            place = found.argsort(dim=-1, descending=True).argsort(dim=-1)
            chosen = place < count
        chosen[:, :, -1] = True
        return chosen

    # Calibration

    def found(self) -> dict[str, Any]:
        """Return the gates."""
        return {"gates": {layer: [gate.q, gate.k] for layer, gate in self.gates.items()}}

    def take(self, found: dict[str, Any]) -> None:
        """Load gates."""
        self.gates = {int(layer): Gate(*own) for layer, own in found["gates"].items()}

    def guess(self, model: Any) -> dict[str, Any]:
        """Return untrained gates, which compare means."""
        sites = hook_of(model)[1]
        made = {s.layer or 0: Gate.of(s, s.head_size or 64) for s in sites}
        return {"gates": {layer: [gate.q, gate.k] for layer, gate in made.items()}}

    def settings(self) -> dict[str, Any]:
        """Return the settings that a calibration depends on."""
        return {x: getattr(self, x) for x in ("block", "rate", "steps")}

    def learn(
        self, model: Any, inputs: Sequence[Tensor], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Train all gates on one text a step; yield progress after each."""
        self.take(state if state else self.guess(model))
        maps = [x.requires_grad_(True) for g in self.gates.values() for x in (g.q, g.k)]
        optimizer = torch.optim.AdamW(maps, lr=self.rate, weight_decay=0.0)
        if state:
            optimizer.load_state_dict(state["optimizer"])
        teacher = Distilling(self.gates, self.block, rotations_of(model, self.gates))
        try:
            with attach(model, [teacher], check=False):
                for step in range(state.get("step", 0), self.steps):
                    optimizer.zero_grad()
                    with torch.no_grad():
                        model(inputs[step % len(inputs)], use_cache=False)
                    optimizer.step()
                    held = {
                        x: [t.detach().clone() for t in y] for x, y in self.found()["gates"].items()
                    }
                    keep({"step": step + 1, "gates": held, "optimizer": optimizer.state_dict()})
                    yield step + 1, self.steps
        finally:
            for x in maps:
                x.requires_grad_(False)


class Distilling(Stage):
    """Train gates on the tile maps of each call: KL(target || G), target from a survey."""

    def __init__(self, gates: dict[int, Gate], block: int, turns: dict[int, Turn]) -> None:
        super().__init__()
        self.gates, self.block, self.turns = gates, block, turns
        self.losses: dict[int, float] = {}

    def see(self, call: Call, result: Result) -> None:
        """Compute the gradient of one layer's gate."""
        layer, at = call.site.layer or 0, torch.arange(call.m, device=call.q.device)
        turn = self.turns[layer]
        q, k = turn.back(call.q.detach(), at), turn.back(call.k.detach(), at)
        with torch.enable_grad():
            logs = self.gates[layer].scores(q, k, 0, self.block, turn)
            loss = divergence(tile_targets(call, self.block), logs)
            loss.backward()
        self.losses[layer] = float(loss.detach())


def tile_targets(call: Call, block: int) -> Tensor:
    """Return the largest weight of each tile, normalized by row, [b, h, t_q, t_k]; one pass."""
    found = survey_call(call, ("tiles",), tile=block).tile_max
    return found / found.sum(-1, keepdim=True).clamp(min=1e-12)


def divergence(target: Tensor, logs: Tensor) -> Tensor:
    """Return KL(target || exp(logs)), a mean over rows of tiles."""
    some = target > 0
    part = torch.xlogy(target, target) - target * torch.where(some, logs, 0.0)
    return torch.where(some, part, 0.0).sum(-1).mean()


def mass_found(call: Call, chosen: Tensor, block: int) -> float:
    """Return the share of all weight that is in chosen tiles."""
    found = survey_call(call, ("tiles",), tile=block).tile_sum
    chosen = chosen & causal_tiles(call, block)
    return float((found * chosen).sum() / found.sum())


def best_tiles(call: Call, block: int, count: Tensor | int) -> Tensor:
    """Select in each row the tiles with the most weight: the oracle."""
    found = survey_call(call, ("tiles",), tile=block).tile_sum
    rows, cols = tile_places(call, block)
    found = found.masked_fill(cols > rows[:, None], -torch.inf)
    return found.argsort(dim=-1, descending=True).argsort(dim=-1) < count
