"""A classifier of texts by keywords, and questions about what it says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.circuits.explaining import Question
from regard.circuits.faithfulness import HeadRows
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.papers.shared.small_trainer import fit

VOCABULARY, TOKENS, KEYWORDS = 60, 16, 6


class Classifier(nn.Module):
    """Two layers of attention over words and a classification token; says which class."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, dim)
        self.places = nn.Parameter(0.1 * torch.randn(TOKENS + 1, dim))
        self.layers = nn.ModuleList(Attention(dim, heads=4) for _ in range(2))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.say = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score embeddings [b, n, dim], the first a token of no word: [b]."""
        x = x + self.places
        for look, norm, wide in zip(self.layers, self.norms, self.wide, strict=True):
            x = x + look(norm(x))
            x = x + wide(x)
        return self.say(x[:, 0])[:, 0]

    def read(self, tokens: Tensor) -> Tensor:
        """Embed tokens [b, n], behind the classification token (0)."""
        return self.words(F.pad(tokens, (1, 0)))


def texts(rows: int) -> tuple[Tensor, Tensor]:
    """Random words [rows, n] and their label: which of two sets of keywords is more in number."""
    tokens = torch.randint(1 + 2 * KEYWORDS, VOCABULARY, (rows, TOKENS))
    many = torch.rand(rows, TOKENS).argsort(1) < torch.randint(1, 6, (rows, 1))
    tokens = torch.where(many, torch.randint(1, 1 + 2 * KEYWORDS, tokens.shape), tokens)
    sums = ((tokens <= 2 * KEYWORDS) * torch.where(tokens > KEYWORDS, 1, -1)).sum(1)
    label = torch.where(sums == 0, tokens[:, 0] % 2, (sums > 0).long())
    return tokens, label


def trained() -> Classifier:
    """A classifier that has learned the keywords."""
    model = Classifier()

    def loss() -> Tensor:
        tokens, label = texts(64)
        return F.binary_cross_entropy_with_logits(model(model.read(tokens)), label.float())

    fit(model.parameters(), loss, 250, 4e-3)
    return model.eval()


def asked(model: Classifier, rows: int) -> tuple[list[Question], list[Tensor]]:
    """Questions about texts, and the last layer's mean row of the classification token."""
    questions, maps = [], []
    for tokens in texts(rows)[0]:
        x = model.read(tokens[None])[0].detach()
        with torch.no_grad():
            sign = float(model(x[None]).sign())
        questions.append(Question(lambda e, s=sign: s * model(e), x))  # type: ignore[misc]
        with attach(model, stage := HeadRows(0), check=False), torch.no_grad():
            model(x[None])
        maps.append(list(stage.found.values())[-1].mean(0))
    return questions, maps
