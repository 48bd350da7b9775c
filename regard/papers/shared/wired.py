"""An induction circuit made by hand: what is to be found in it is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.layers.attention import Attention


class Wired(nn.Module):
    """Two layers made by hand: L0H1 writes the previous token, L1H0 copies what followed.

    States hold four parts: the token, its place, the token before, what is said. Heads other than
    the wired two do nothing.
    """

    def __init__(self, words: int = 6, n: int = 8) -> None:
        super().__init__()
        self.words, self.n = words, n
        self.embed = nn.Embedding(words, 2 * words + words + n)
        dim = 3 * words + n
        with torch.no_grad():
            self.embed.weight.zero_()
            self.embed.weight[:, :words] = torch.eye(words)
        self.layers = nn.ModuleList(
            Attention(dim, heads=2, head_dim=max(n, words), causal=True, position=None)
            for _ in range(2)
        )
        self.lm_head = nn.Linear(dim, words, bias=False)
        with torch.no_grad():
            for p in [*self.layers.parameters(), *self.lm_head.parameters()]:
                p.zero_()
            d, t, at = max(n, words), slice(0, words), slice(words, words + n)
            before = slice(words + n, 2 * words + n)
            said = slice(2 * words + n, dim)
            one, two = self.layers
            # L0H1: the query of place i asks for place i - 1; it writes the token found there.
            rows = slice(d, d + n)
            one.to_q.weight[rows, at] = 200 * torch.eye(n).roll(-1, 0)
            one.to_k.weight[rows, at] = torch.eye(n)
            one.to_v.weight[d : d + words, t] = torch.eye(words)
            one.to_out.weight[before, d : d + words] = torch.eye(words)
            # L1H0: asks for places whose earlier token is this one; it writes the token there.
            two.to_q.weight[:words, t] = 200 * torch.eye(words)
            two.to_k.weight[:words, before] = torch.eye(words)
            two.to_v.weight[:words, t] = torch.eye(words)
            two.to_out.weight[said, :words] = torch.eye(words)
            self.lm_head.weight[:, said] = torch.eye(words)

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.embed

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [b, n, words]."""
        x = self.embed(ids)
        x = x + nn.functional.pad(
            torch.eye(self.n)[: ids.shape[1]], (self.words, 2 * self.words)
        )  # fmt: skip
        for layer in self.layers:
            x = x + layer(x)
        return self.lm_head(x)


class _Block(nn.Module):
    """A wired layer and an MLP behind it."""

    def __init__(self, attention: nn.Module, dim: int, said: slice) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, dim, bias=False))
        with torch.no_grad():
            last = self.mlp[2].weight
            drawn = 0.1 * torch.randn_like(last[said])
            last.zero_()
            last[said] = drawn

    def forward(self, x: Tensor) -> Tensor:
        """Return what both add to x, on top of it."""
        x = x + self.attention(x)
        made: Tensor = x + self.mlp(x)
        return made


class WiredWithMlps(Wired):
    """The same circuit, with a random MLP behind each layer that adds a little to what is said."""

    def __init__(self, words: int = 6, n: int = 8) -> None:
        super().__init__(words, n)
        dim = 3 * words + n
        self.layers = nn.ModuleList(
            _Block(layer, dim, slice(2 * words + n, dim)) for layer in self.layers
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [b, n, words]."""
        x = self.embed(ids)
        x = x + nn.functional.pad(
            torch.eye(self.n)[: ids.shape[1]], (self.words, 2 * self.words)
        )  # fmt: skip
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class PlainNorm(nn.Module):
    """Stands where a final norm would, and does nothing: logits are linear in the last state."""

    def forward(self, x: Tensor) -> Tensor:
        """Give the same values."""
        return 1.0 * x


__all__ = ["PlainNorm", "Wired", "WiredWithMlps"]

# Prompts whose answer follows an earlier token.
CLEAN = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3]])
