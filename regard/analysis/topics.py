"""Topic structure: whether attention and embeddings store which words go together."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method
from regard.core.support import Support, Where
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.roles import words_of
from regard.probes.scores import Scores
from regard.probes.shape import visible_keys
from regard.run.mass import log_weight, mass

CLASSES = ("same word", "same topic", "different topic")


@method(
    "topic_structure_probe",
    call="import torch\n"
    "from regard.analysis.topics import TopicAttention\n"
    "probe = TopicAttention(torch.arange(100) // 10)  # the topic of each of 100 words\n"
    "# regard.see(model, ids, [probe]).scores['topics'].details",
)
class TopicAttention(Probe):
    """Mean weight between words of one topic, over that between words of different topics.

    `topic_of` [vocabulary] names the topic of each word, -1 where it has none (Li 2023). A weight
    is the mean of A[i, j] over visible pairs; `details` gives those of the same word (but
    not the same place), of other words of the topic, and of different topics, for each site.
    """

    key, title, high = "topics", "same topic / different", None
    definitions: ClassVar = {"ratio": "mean A[i, j] in a topic (other word) / between topics"}

    def __init__(self, topic_of: Tensor | None = None, where: Any = None) -> None:
        super().__init__(where)
        self.topic_of = topic_of
        self.sums: dict[Site, Tensor] = {}

    def look(self, site: Site, call: Call, survey: Any) -> None:
        """Add weight and number of the pairs of each class."""
        tokens = words_of(self, call)
        if self.topic_of is None or int(tokens.max()) >= len(self.topic_of):
            fail(
                ShapeError, "topic_of",
                "None" if self.topic_of is None else f"topics of {len(self.topic_of)} words",
                f"one for each of at least {int(tokens.max()) + 1} words",
                "pass TopicAttention(topic_of=...), -1 for words of no topic",
            )  # fmt: skip
        topics = self.topic_of.to(tokens.device)[tokens]
        whole, found = log_weight(call), []
        for part in _classes(tokens, topics):
            rule = call.rule.replace(support=call.rule.support & part)
            pairs = visible_keys(call.replace(rule=rule))
            weight = mass(call, part, whole).double().sum((0, 2))
            found.append(torch.stack([weight, pairs.expand(call.b, call.h, -1).sum((0, 2))]))
        self.sums[site] = self.sums.get(site, 0.0) + torch.stack(found).cpu()  # [class, 2, h]

    def result(self) -> Scores:
        """Return the ratio by head."""
        means = {site: x[:, 0] / x[:, 1] for site, x in self.sums.items()}
        details = {
            name: {site: x[i] for site, x in means.items()} for i, name in enumerate(CLASSES)
        }
        return self.scores({site: x[1] / x[2] for site, x in means.items()}, **details)


def _classes(tokens: Tensor, topics: Tensor) -> list[Support]:
    """Return the pairs of each class, by the words [b, n] and their topics [b, n]."""

    def at(table: Tensor, b: Tensor, i: Tensor) -> Tensor:
        return table[b.clamp(max=len(table) - 1), i.clamp(0, table.shape[1] - 1)]

    def word(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (at(tokens, b, i) == at(tokens, b, j)) & (i != j)

    def known(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (at(topics, b, i) >= 0) & (at(topics, b, j) >= 0)

    def topic(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = at(topics, b, i) == at(topics, b, j)
        return same & known(b, i, j) & (at(tokens, b, i) != at(tokens, b, j))

    def other(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (at(topics, b, i) != at(topics, b, j)) & known(b, i, j)

    return [Where(word), Where(topic), Where(other)]


def topic_similarity(embedding: Tensor, topic_of: Tensor) -> tuple[float, float]:
    """Return the mean inner product of embeddings [words, d]: within topics, and between.

    >>> topic_similarity(torch.eye(2).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1]))
    (1.0, 0.0)
    """
    if topic_of.shape != embedding.shape[:1]:
        fail(
            ShapeError, "topic_of", shape_of(topic_of), f"[{len(embedding)}]",
            "name the topic of every word",
        )  # fmt: skip
    product = embedding @ embedding.T
    known = (topic_of >= 0) & (topic_of[:, None] >= 0)
    same = (topic_of[:, None] == topic_of) & known
    apart = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    return float(product[same & apart].mean()), float(product[~same & known].mean())
