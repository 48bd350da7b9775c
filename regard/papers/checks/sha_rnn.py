"""A kept gate is the gate; segments are the whole; the head copies what the LSTM lost."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.single_head import SingleHead, SingleHeadedRnn
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


def _copied(attends: bool) -> float:
    """Accuracy of repeating 20 tokens after 40 of filler, after a short training."""
    restart()
    words, layer, last = (
        nn.Embedding(18, 32),
        SingleHeadedRnn(32, attends=attends),
        nn.Linear(32, 16),
    )
    second = SingleHeadedRnn(32, attends=attends)

    def batch(rows: int) -> Tensor:
        told = torch.randint(0, 16, (rows, 20))
        return torch.cat((told, torch.full((rows, 40), 16), told), 1)

    def scores(tokens: Tensor) -> Tensor:
        answer: Tensor = last(second(layer(words(tokens)))[:, 60:-1])
        return answer

    def loss() -> Tensor:
        tokens = batch(32)
        return F.cross_entropy(scores(tokens).flatten(0, 1), tokens[:, 61:].flatten())

    held = [p for part in (words, layer, second, last) for p in part.parameters()]
    fit(held, loss, 250, 5e-3)
    tokens = batch(200)
    with torch.no_grad():
        return float((scores(tokens).argmax(-1) == tokens[:, 61:]).float().mean())


@check("sha_rnn")
def single_headed() -> Claims:
    """A kept gate is the gate; segments are the whole; the head copies what the LSTM lost."""
    head, x = SingleHead(16, span=50), torch.randn(2, 20, 16)
    before = head(x)
    constant = head.gate().detach()
    head.gate = lambda: constant  # type: ignore[method-assign]  # a constant gate, for this check
    collapsed = gap(head(x), before)
    layer = SingleHeadedRnn(16, span=50)
    memory = layer.memory()
    with torch.no_grad():
        parts = [layer(x[:, :9], memory=memory), layer(x[:, 9:], memory=memory)]
    segments = gap(torch.cat(parts, 1), layer(x))
    accuracy = {name: _copied(attends) for name, attends in (("with", True), ("without", False))}
    yield claim("Cached value gate", "difference", collapsed).within(
        1e-6, "the gate as it was", because=CATALOGUE
    )
    yield claim("Running a sequence", "difference of two segments", segments).within(
        1e-5, "one segment", because=FLOAT32
    )
    yield claim("Copy task at lag 60", "accuracy with the head", accuracy["with"]).above(
        accuracy["without"],
        "the same model without attention, trained alike",
        plus=0.05,
        because="five points: 3,800 answers, and chance is 6%",
    )
