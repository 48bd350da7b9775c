"""Means of one item are single queries; the future is not seen; means help against noise."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.averaged_queries import Recommender, transitions
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


def _majority(length: int) -> float:
    """Hit rate of the category of the next item, the mean of three draws."""
    rates = []
    for draw in range(3):
        restart(f"majority {draw}")
        model = Recommender(items=20, dim=24, length=length, share=0.0)

        def batch(rows: int) -> Tensor:
            kinds = torch.randint(0, 4, (rows, 3))
            for _ in range(9):
                last = F.one_hot(kinds[:, -3:], 4).sum(1).float()
                likely = (last + 0.1 * torch.rand_like(last)).argmax(1)
                noise = torch.randint(0, 4, (rows,))
                kinds = torch.cat(
                    (kinds, torch.where(torch.rand(rows) < 0.4, noise, likely)[:, None]), 1
                )
            return 1 + 5 * kinds + torch.randint(0, 5, kinds.shape)

        def loss(model: Recommender = model) -> Tensor:
            tokens = batch(64)
            return F.cross_entropy(model(tokens)[:, 2:-1].flatten(0, 1), tokens[:, 3:].flatten())

        fit(model.parameters(), loss, 250, 4e-3)
        tokens = batch(500)
        with torch.no_grad():
            best = model(tokens)[:, 2:-1, 1:].unflatten(-1, (4, 5)).logsumexp(-1).argmax(-1)
        rates.append(float((best == (tokens[:, 3:] - 1) // 5).float().mean()))
    return sum(rates) / 3


def _markov(weight: float) -> float:
    """Accuracy of the next item of a first-order chain, from 12 sequences, over three draws."""
    rates = []
    for draw in range(3):
        restart(f"chain {draw}")
        follows = torch.randperm(30)

        def batch(rows: int, follows: Tensor = follows) -> Tensor:
            items = [torch.randint(0, 30, (rows,))]
            for _ in range(7):
                other = torch.randint(0, 30, (rows,))
                items.append(torch.where(torch.rand(rows) < 0.2, other, follows[items[-1]]))
            return torch.stack(items, 1) + 1

        seen = batch(12)
        model = Recommender(items=30, dim=24)
        counts = transitions(seen, 30)

        def loss(
            model: Recommender = model, seen: Tensor = seen, counts: Tensor = counts
        ) -> Tensor:
            told = F.cross_entropy(model(seen)[:, :-1].flatten(0, 1), seen[:, 1:].flatten())
            if not weight:
                return told
            return told + weight * model.transition_loss(torch.arange(1, 31), counts)

        fit(model.parameters(), loss, 150, 4e-3)
        tokens = batch(500)
        with torch.no_grad():
            best = model(tokens)[:, :-1].argmax(-1)
        rates.append(float((best == tokens[:, 1:]).float().mean()))
    return sum(rates) / 3


@check("mqsa_ted")
def averaged_queries() -> Claims:
    """Means of one item are single queries; the future is not seen; means help against noise."""
    tied = Recommender(items=20, dim=16, length=1).eval()
    tied.long.load_state_dict(tied.short.state_dict())
    tokens = torch.randint(1, 21, (3, 12))
    one = copy.deepcopy(tied)
    one.share = 1.0
    same = gap(tied(tokens), one(tokens))
    model = Recommender(items=20, dim=16).eval()
    changed = torch.cat((tokens[:, :7], torch.randint(1, 21, (3, 5))), 1)
    leak = gap(model(changed)[:, :7], model(tokens)[:, :7])
    # Items come in 4 categories of 5; what is next depends on the majority of the last three.
    hits = {length: _majority(length) for length in (1, 3)}
    followed = {weight: _markov(weight) for weight in (0.0, 0.1)}
    yield claim("L=1 with tied weights", "difference of the branches", same).within(
        1e-5, "one branch", because=FLOAT32
    )
    yield claim("causal: editing", "change before an edited item", leak).within(
        1e-5, "none", because=FLOAT32
    )
    yield claim("on synthetic sequences", "hit@1, L = 3", hits[3]).above(
        hits[1], "L = 1, started alike"
    )
    yield claim(
        "adding loss_kd raises", "accuracy with distilled transitions", followed[0.1]
    ).above(followed[0.0], "without, started alike")
