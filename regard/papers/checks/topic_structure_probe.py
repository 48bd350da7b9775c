"""Words of a topic look at each other after training, as they did not before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.analysis.topics import CLASSES, TopicAttention
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.small_trainer import fit
from regard.probes.reading import Reading


class MaskedReader(nn.Module):
    """One layer that fills in masked words: f(Z) = E (W Z A(Z)), without a residual."""

    def __init__(self, words: int, dim: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, dim)  # the last one is the mask
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.look = Attention(dim, heads)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of words [b, n, words]."""
        seen = self.look(self.embedding(input_ids))
        return seen @ self.embedding.weight[:-1].T


def documents(rows: int, topics: int, words: int, length: int, some: int = 2) -> Tensor:
    """Draw documents of a few topics each; word w has topic w // words."""
    chosen = torch.rand(rows, topics).topk(some, 1).indices
    topic = chosen.gather(1, torch.randint(some, (rows, length)))
    return topic * words + torch.randint(words, (rows, length))


@check(
    "topic_structure_probe",
    beyond=(
        "the three regimes with parts frozen, and BERT on Wikipedia; the model and its "
        "documents are written in this check"
    ),
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
        tokens = documents(32, count, words, length)
        # A masked place shows the mask, or now and then its word, or another one.
        masked, how = torch.rand(tokens.shape) < 0.15, torch.rand(tokens.shape)
        # because: BERT's shares
        given = torch.where(how < 0.8, total, torch.where(how < 0.9, tokens,
                            torch.randint(total, tokens.shape)))  # fmt: skip
        said = model(torch.where(masked, given, tokens))
        return F.cross_entropy(said[masked], tokens[masked])

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
