"""A small copier whose decoder looks along its source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.alignment import (
    SourceAttention,
)
from regard.papers.shared.small_trainer import fit


class Copier(nn.Module):
    """Write the source again, token by token: a decoder that counts, and a source attention.

    The decoder is a GRU fed with what it wrote last; the source is embedded, and read by another
    GRU where it `encodes`.
    """

    def __init__(self, attention: SourceAttention, words: int = 8, encodes: bool = False) -> None:
        super().__init__()
        dim = attention.dim
        self.encoder = nn.GRU(dim, dim, batch_first=True) if encodes else None
        self.words = nn.Embedding(words + 1, dim)
        self.decoder = nn.GRU(dim, dim, batch_first=True)
        self.attention, self.last = attention, nn.Linear(dim, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Score each target token given the ones before it: [b, n, words]."""
        before = F.pad(target[:, :-1] + 1, (1, 0))
        states, _ = self.decoder(self.words(before))
        seen = self.words(source + 1)
        if self.encoder is not None:
            seen, _ = self.encoder(seen)
        scores: Tensor = self.last(self.attention(states, seen))
        return scores


def trained(
    attention: SourceAttention, lengths: tuple[int, int], steps: int, *, encodes: bool = False
) -> Copier:
    """Train a copier on sources of these lengths."""
    copier = Copier(attention, encodes=encodes)

    def loss() -> Tensor:
        source = torch.randint(0, 8, (32, int(torch.randint(*lengths, ()))))
        return F.cross_entropy(copier(source, source).flatten(0, 1), source.flatten())

    fit(copier.parameters(), loss, steps, 1e-2)
    return copier


@torch.no_grad()
def copied(copier: Copier, length: int, rows: int = 64) -> float:
    """Share of tokens that are copied right at a length."""
    source = torch.randint(0, 8, (rows, length))
    return float((copier(source, source).argmax(-1) == source).float().mean())


@torch.no_grad()
def copied_whole(copier: Copier, length: int, rows: int = 64) -> float:
    """Share of sources of a length that are copied without a mistake."""
    source = torch.randint(0, 8, (rows, length))
    return float((copier(source, source).argmax(-1) == source).all(1).float().mean())
