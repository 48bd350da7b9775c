"""Heads that come with a second task matter for it, and less for the first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.circuits.edges import LOGITS, edge_attribution, emergent
from regard.layers.attention import Attention
from regard.layers.building import model as stack
from regard.models.attach import attach, hook_of
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.until_learned import fit_until
from regard.papers.shared.wired import PlainNorm
from regard.probes.importance import taken_out

WORDS, LONG = 14, 6


HEADS, EDGES = 4, 8


AGAIN, BACK = 0, 1  # the first token says which task it is


def batch(rows: int, task: int | None) -> Tensor:
    """A task's mark, distinct words, and the words again: in order, or the last one first."""
    kind = torch.randint(2, (rows, 1)) if task is None else torch.full((rows, 1), task)
    words = 2 + torch.rand(rows, WORDS).argsort(1)[:, :LONG]
    return torch.cat([kind, words, torch.where(kind == AGAIN, words, words.flip(1))], 1)


def trained(model: nn.Module, task: int | None, most: int) -> None:
    """Train on one task, or on both, until it is learned."""

    def loss() -> Tensor:
        ids = batch(48, task)
        said = model(ids)[:, LONG + 1 : -1]
        return F.cross_entropy(said.flatten(0, 1), ids[:, LONG + 2 :].flatten())

    fit_until(model.parameters(), loss, 0.05, most, 5e-3)


def right(model: nn.Module, task: int) -> float:
    """Accuracy on a task."""
    restart()
    ids = batch(200, task)
    with torch.no_grad():
        said = model(ids)[:, LONG + 1 : -1].argmax(-1)
    return float((said == ids[:, LONG + 2 :]).double().mean())


def circuit(model: nn.Module, task: int, edges: int) -> set[str]:
    """The heads of a task's circuit; in the corrupted prompts the answer stood elsewhere."""
    restart()
    ids = batch(64, task)
    at = LONG + LONG // 2  # a query in the middle of the second copy
    answer = ids[:, at + 1]
    other = ids.clone()
    order = torch.rand(64, LONG).argsort(1)  # the same words, other neighbors
    other[:, 1 : LONG + 1] = ids[:, 1 : LONG + 1].gather(1, order)

    def metric(output: Tensor) -> Tensor:
        logits = output[:, at].log_softmax(-1)
        return logits.gather(1, answer[:, None]).mean()

    return edge_attribution(model, ids, other, metric, steps=5).heads(edges)


def _linear() -> float:
    """Sum of the edges into the logits over the change of the metric, in a linear model."""
    restart()
    model = stack(
        [Attention(32, heads=2, causal=True) for _ in range(2)], vocab=12, dim=32,
        tied=False,
    )  # fmt: skip
    model.norm = PlainNorm()
    for layer in model.modules():
        if isinstance(layer, Attention):  # weights that do not move: attention is linear
            nn.init.zeros_(layer.to_q.weight)
    ids = torch.randint(0, 12, (4, 9))
    other = ids.clone()
    other[:, 3] = (ids[:, 3] + 1) % 12
    edges = edge_attribution(
        model, ids, other, lambda x: (x[:, -1, 3] - x[:, -1, 5]).mean(), steps=5
    )
    return edges.into(LOGITS) / (edges.clean - edges.corrupt)


@check(
    "thinking_sparks",
    beyond="reasoning models, reinforcement learning and its checkpoints",
)
def sparks() -> Claims:
    """Heads that come with a second task matter for it, and less for the first."""
    restart()
    model = stack(
        [Attention(64, heads=HEADS, causal=True, position="rotary") for _ in range(2)],
        vocab=WORDS + 2, dim=64, tied=False,
    )  # fmt: skip
    trained(model, AGAIN, 400)
    base = circuit(model, AGAIN, EDGES)
    trained(model, None, 1000)
    post = circuit(model, BACK, EDGES) | circuit(model, AGAIN, EDGES)
    came = emergent(base, post)["emerged"]
    sites = {f"L{s.layer}H{h}": (s, h) for s in hook_of(model)[1] for h in range(HEADS)}
    plain = [right(model, task) for task in (AGAIN, BACK)]

    def loss_of(names: list[str]) -> list[float]:
        with attach(model, taken_out([sites[x] for x in names]), check=False):
            return [plain[task] - right(model, task) for task in (AGAIN, BACK)]

    ours = loss_of(sorted(came))
    restart()
    chance = []
    for _ in range(20):
        some = torch.randperm(len(sites))[: len(came)].tolist()
        chance.append(loss_of([list(sites)[i] for i in some])[1])
    mean = sum(chance) / len(chance)
    linear = _linear()
    yield claim("Toy: train base", "accuracy on both tasks, the lower one", min(plain)).above(
        0.9, "tasks that are learned", because="or no head would matter"
    )
    yield claim("emergent heads'", "second task's loss without the new heads", ours[1]).above(
        mean,
        "without as many random heads",
        times=1.5,
        because="far more: at least half as much again",
    )
    yield claim("emergent heads'", "first task's loss without the new heads", ours[0]).below(
        ours[1], "the second task's"
    )
    yield claim(
        "On a linear model", "sum of scores into the logits over the change", linear
    ).within(0.01, "1", value=1, because=CATALOGUE)
