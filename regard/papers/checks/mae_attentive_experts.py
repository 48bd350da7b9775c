"""Experts that leave one head out: even gates are multi-head attention, gates tell tasks apart."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.heads import gate_heads
from regard.layers.attention import Attention, joined
from regard.layers.mixtures import AttentiveExperts
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit
from regard.run.api import attend


def _auc(score: Tensor, label: Tensor) -> float:
    """Share of pairs that a score ranks right, whichever way round."""
    wins = (score[label == 1][:, None] > score[label == 0]).float().mean()
    return float(max(wins, 1 - wins))


@check("mae_attentive_experts")
def attentive_experts() -> Claims:
    """Even gates are multi-head attention, a sure gate leaves one head out, gates tell tasks."""
    h, x = 8, torch.randn(2, 15, 64)
    layer, plain = AttentiveExperts(64, heads=h), Attention(64, heads=h)
    plain.load_state_dict(layer.state_dict(), strict=False)
    last = layer.to_gate[2]
    with torch.no_grad():
        last.weight.zero_(), last.bias.zero_()
        even = gap(layer(x), plain(x))
        last.bias[3] = 200.0
        without = plain.to_out.weight.clone().unflatten(1, (h, -1))
        without[:, 3] = 0
        seen = attend(plain.queries(x), *plain.keys(x))
        one_out = gap(layer(x), joined(seen) @ without.flatten(1).T * h / (h - 1))
    layer.draws_experts = True
    layer(x).sum().backward()
    own = layer.to_q.weight.grad.unflatten(0, (h, -1)).abs().amax((1, 2))
    idle, busy = float(own[3]), float(own[torch.arange(h) != 3].min())

    # Turn by turn: gates learn with experts held still, experts with gates held still and one of
    # them drawn. Each of two tasks, told apart by its first token, is what a teacher, the layer as
    # it began, says without another head.
    restart()
    layer = AttentiveExperts(32, heads=4)
    teacher = copy.deepcopy(layer).requires_grad_(False)
    marks = torch.randn(2, 32)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        task = torch.randint(0, 2, (size,))
        return torch.cat((marks[task][:, None], torch.randn(size, 8, 32)), 1), task

    def loss() -> Tensor:
        x, task = batch(32)
        seen = attend(teacher.queries(x), *teacher.keys(x))
        best = gate_heads(seen, (1 - F.one_hot(task, 4)) * 4 / 3)
        return F.mse_loss(layer(x), teacher.to_out(joined(best)))

    gates_own = {id(p) for p in layer.gate_parameters()}
    experts = [p for p in layer.parameters() if id(p) not in gates_own]
    for _ in range(4):
        layer.draws_experts = False
        fit(layer.gate_parameters(), loss, 50)
        layer.draws_experts = True
        fit(experts, loss, 50, 3e-4)
    layer.draws_experts = False
    x, task = batch(512)
    gates = layer.to_gate(x.mean(1)).softmax(-1)
    best = min(_auc(gates[:, i], task) for i in range(2))
    yield claim("Uniform gate", "difference from multi-head attention", even).within(
        1e-6, "multi-head attention", because=CATALOGUE
    )
    yield claim("one-hot gate i", "difference from the heads without one, scaled", one_out).within(
        1e-5, "the formula", because=FLOAT32
    )
    yield claim("In the F step", "gradient of the drawn expert's head", idle).equals(0.0, "none")
    yield claim("In the F step", "least gradient of the other heads", busy).above(
        idle, "that of the drawn one"
    )
    yield claim("mixed data from two tasks", "area under the curve", best).above(
        0.9, "the catalogue's bound", because=CATALOGUE
    )
