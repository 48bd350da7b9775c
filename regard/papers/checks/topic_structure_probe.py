"""Words of a topic look at each other after training, as they did not before."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.analysis.topic_documents import MaskedReader, documents
from regard.analysis.topics import CLASSES, TopicAttention
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.small_trainer import fit
from regard.probes.reading import Reading


@check(
    "topic_structure_probe",
    beyond="the three regimes with parts frozen, and BERT on Wikipedia",
)
def topics() -> Claims:
    """Words of a topic look at each other after training, as they did not before."""
    count, words, length = 10, 10, 40
    total = count * words
    topic_of = torch.cat([torch.arange(total) // words, torch.tensor([-1])])
    model = MaskedReader(total, 64, heads=2)
    shown = Reading({"input_ids": documents(64, count, words, length)})

    def ratio(names: Tensor) -> tuple[float, Tensor]:
        probe = TopicAttention(names)
        probe.show(shown)
        with attach(model, probe, check=False), torch.no_grad():
            model(shown.inputs["input_ids"])
        scores = probe.told()
        means = [next(iter(scores.details[name].values())).mean() for name in CLASSES]
        return float(means[1] / means[2]), torch.stack(means)

    before, _ = ratio(topic_of)

    def loss() -> Tensor:
        return model.masked_loss(documents(32, count, words, length))

    fit(model.parameters(), loss, 300, 4e-3)
    after, _ = ratio(topic_of)
    shuffled = torch.cat([topic_of[:-1][torch.randperm(total)], topic_of[-1:]])
    chance, _ = ratio(shuffled)
    yield claim("Train the one-layer model", "ratio after training", after).above(
        1.2, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("Train the one-layer model", "ratio at the start", before).within(
        0.02, "1", value=1, because=CATALOGUE
    )
    yield claim("shuffling the topic labels", "ratio, topics shuffled", chance).within(
        0.1, "1", value=1, because="ten words a topic: by chance a few stay together"
    )
