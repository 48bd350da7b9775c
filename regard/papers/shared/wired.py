"""An induction circuit set by hand, in which the heads to be found are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.layers.attention import Attention


class Wired(nn.Module):
    """Two layers set by hand: L0H1 writes the previous token, L1H0 copies the one that followed.

    States have four parts: the token, its position, the token before, and the output. The other
    heads do nothing.
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
            output = slice(2 * words + n, dim)
            one, two = self.layers
            # L0H1: the query at position i matches the key at i - 1; it writes the token there.
            rows = slice(d, d + n)
            one.to_q.weight[rows, at] = 200 * torch.eye(n).roll(-1, 0)
            one.to_k.weight[rows, at] = torch.eye(n)
            one.to_v.weight[d : d + words, t] = torch.eye(words)
            one.to_out.weight[before, d : d + words] = torch.eye(words)
            # L1H0: matches positions whose previous token is this one; it writes the token there.
            two.to_q.weight[:words, t] = 200 * torch.eye(words)
            two.to_k.weight[:words, before] = torch.eye(words)
            two.to_v.weight[:words, t] = torch.eye(words)
            two.to_out.weight[output, :words] = torch.eye(words)
            self.lm_head.weight[:, output] = torch.eye(words)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.embed

    def states(self, ids: Tensor) -> Tensor:
        """Embed tokens and their positions, [b, n, dim]."""
        places = torch.eye(self.n)[: ids.shape[1]]
        return self.embed(ids) + nn.functional.pad(places, (self.words, 2 * self.words))

    def forward(self, ids: Tensor) -> Tensor:
        """Compute logits [b, n, words]."""
        x = self.states(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.lm_head(x)


class _Block(nn.Module):
    """A wired layer and an MLP after it."""

    def __init__(self, attention: nn.Module, dim: int, output: slice) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, dim, bias=False))
        with torch.no_grad():
            last = self.mlp[2].weight
            drawn = 0.1 * torch.randn_like(last[output])
            last.zero_()
            last[output] = drawn

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs of both to x."""
        x = x + self.attention(x)
        made: Tensor = x + self.mlp(x)
        return made


class WiredWithMlps(Wired):
    """The same circuit, with a random MLP after each layer that adds a little to the output."""

    def __init__(self, words: int = 6, n: int = 8) -> None:
        super().__init__(words, n)
        dim = 3 * words + n
        self.layers = nn.ModuleList(
            _Block(layer, dim, slice(2 * words + n, dim)) for layer in self.layers
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Compute logits [b, n, words]."""
        x = self.states(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class PlainNorm(nn.Module):
    """A final norm that does nothing, so that logits are linear in the last state."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same values."""
        return 1.0 * x


# Prompts whose answer follows an earlier token.
CLEAN = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3]])
