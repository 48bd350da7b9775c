"""Checks of rows about recommending, and of an RNN that looks back."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.averaged_queries import Recommender, transitions
from regard.layers.single_head import SingleHead, SingleHeadedRnn
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit
from regard.papers.seeding import restart


@check("mqsa_ted")
def averaged_queries() -> Measured:
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
    return Measured(
        "with a length of 1 and equal weights the branches are one; later items change nothing; "
        "where the next item depends on the majority of three noisy ones, means of 3 beat single "
        "queries in hit@1; distilled transitions raise next-item accuracy on few Markov sequences",
        same < 1e-5 and leak < 1e-5 and hits[3] > hits[1] and followed[0.1] > followed[0.0],
        {"one branch": same, "leak": leak, **{f"hit@1, length {n}": h for n, h in hits.items()},
         "accuracy without distillation": followed[0.0], "with": followed[0.1]},
    )  # fmt: skip


def _majority(length: int) -> float:
    """Hit rate of the category of the next item, the mean of three seeds."""
    rates = []
    for seed in range(3):
        torch.manual_seed(seed)
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
    """Accuracy of the next item of a first-order chain, from 12 sequences, over three seeds."""
    rates = []
    for seed in range(3):
        torch.manual_seed(seed)
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


@check("sha_rnn")
def single_headed() -> Measured:
    """A kept gate is the gate; segments are the whole; the head copies what the LSTM lost."""
    head, x = SingleHead(16, span=50), torch.randn(2, 20, 16)
    before = head(x)
    constant = head.gate().detach()
    head.gate = lambda: constant  # type: ignore[method-assign]
    collapsed = gap(head(x), before)
    layer = SingleHeadedRnn(16, span=50)
    memory = layer.memory()
    with torch.no_grad():
        parts = [layer(x[:, :9], memory=memory), layer(x[:, 9:], memory=memory)]
    segments = gap(torch.cat(parts, 1), layer(x))
    accuracy = {name: _copied(attends) for name, attends in (("with", True), ("without", False))}
    return Measured(
        "the value gate collapsed to a constant changes nothing; two segments with memory are one; "
        "tokens are copied from 40 places back better with the head than without",
        collapsed < 1e-6 and segments < 1e-5 and accuracy["with"] > accuracy["without"] + 0.1,
        {"collapsed": collapsed, "segments": segments,
         **{f"accuracy {name} the head": a for name, a in accuracy.items()}},
    )  # fmt: skip


def _copied(attends: bool) -> float:
    """Accuracy of repeating 20 tokens after 20 of filler, after a short training."""
    restart()
    words, layer, last = (
        nn.Embedding(18, 32),
        SingleHeadedRnn(32, attends=attends),
        nn.Linear(32, 16),
    )
    second = SingleHeadedRnn(32, attends=attends)

    def batch(rows: int) -> Tensor:
        told = torch.randint(0, 16, (rows, 20))
        return torch.cat((told, torch.full((rows, 20), 16), told), 1)

    def scores(tokens: Tensor) -> Tensor:
        answer: Tensor = last(second(layer(words(tokens)))[:, 40:-1])
        return answer

    def loss() -> Tensor:
        tokens = batch(32)
        return F.cross_entropy(scores(tokens).flatten(0, 1), tokens[:, 41:].flatten())

    held = [p for part in (words, layer, second, last) for p in part.parameters()]
    fit(held, loss, 250, 5e-3)
    tokens = batch(200)
    with torch.no_grad():
        return float((scores(tokens).argmax(-1) == tokens[:, 41:]).float().mean())
