"""Documents of known topics, and the one-layer model that is read on them (Li 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.attention import Attention


class MaskedReader(nn.Module):
    """One layer that fills in masked words: f(Z) = E (W Z A(Z)), without a residual.

    Word `words` is the mask.

    >>> MaskedReader(words=20, dim=16, heads=2)(torch.randint(21, (2, 7))).shape
    torch.Size([2, 7, 20])
    """

    def __init__(self, words: int, dim: int, heads: int) -> None:
        super().__init__()
        self.words = words
        self.embedding = nn.Embedding(words + 1, dim)  # the last one is the mask
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.look = Attention(dim, heads)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of words [b, n, words]."""
        seen = self.look(self.embedding(input_ids))
        return seen @ self.embedding.weight[:-1].T

    def masked_loss(self, tokens: Tensor, share: float = 0.15) -> Tensor:
        """Cross-entropy of words that are masked as BERT masks: of a share of tokens [b, n].

        A masked place shows the mask, or one time in ten its word, or one in ten another one.
        """
        masked, how = torch.rand(tokens.shape) < share, torch.rand(tokens.shape)
        other = torch.randint(self.words, tokens.shape)
        given = torch.where(how < 0.8, self.words, torch.where(how < 0.9, tokens, other))
        said = self(torch.where(masked, given, tokens))
        return F.cross_entropy(said[masked], tokens[masked])


def documents(rows: int, topics: int, words: int, length: int, some: int = 2) -> Tensor:
    """Draw documents [rows, length] of `some` topics each; word w has topic w // words.

    >>> (documents(3, topics=5, words=4, length=9) // 4).unique(dim=-1).shape[0]
    3
    """
    chosen = torch.rand(rows, topics).topk(some, 1).indices
    topic = chosen.gather(1, torch.randint(some, (rows, length)))
    return topic * words + torch.randint(words, (rows, length))


__all__ = ["MaskedReader", "documents"]
