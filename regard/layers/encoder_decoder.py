"""The original transformer: a bidirectional encoder, and a decoder with cross-attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.positions import Sinusoidal
from regard.layers.registry import layer
from regard.layers.stack import Block, Stack, pick
from regard.memories.layer import LayerMemory


def _ffn(dim: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))


@method(
    "transformer",
    call="import regard\nfrom regard.layers import EncoderDecoder\n"
    "model = EncoderDecoder(dim=512, heads=8, layers=6, vocab=1000)",
)
class EncoderDecoder(nn.Module):
    """Translate sequences: source tokens [b, m] and target tokens [b, n] to scores [b, n, vocab].

    Sums are normalized after each step, positions are sinusoids added to embeddings scaled by
    `sqrt(dim)`, and one table serves source, target and output. `kind` and `cross` name the layers
    for self-attention and for cross-attention.

    >>> model = EncoderDecoder(dim=32, heads=4, layers=2, vocab=40)
    >>> source, target = torch.randint(0, 40, (1, 9)), torch.randint(0, 40, (1, 5))
    >>> model(source, target).shape, model.generate(source, start=1, count=4).shape
    (torch.Size([1, 5, 40]), torch.Size([1, 5]))
    """

    def __init__(
        self, *, dim: int = 512, heads: int = 8, layers: int = 6, vocab: int,
        width: int | None = None, dropout: float = 0.0, kind: str = "mha", cross: str = "mha",
        norm_first: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        need_size("layers", layers)
        width = 4 * dim if width is None else width
        around: dict[str, Any] = {
            "norm": nn.LayerNorm, "norm_first": norm_first, "dropout": dropout,
        }  # fmt: skip

        def block(decodes: bool) -> Block:
            return Block(
                layer(kind, dim, heads=heads, causal=decodes, dropout=dropout, **settings),
                cross=layer(cross, dim, heads=heads, context_dim=dim) if decodes else None,
                feed_forward=_ffn(dim, width),
                **around,
            )

        self.dim = dim
        self.embedding = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.absolute = Sinusoidal(dim)
        self.encoder = Stack([block(False) for _ in range(layers)])
        self.decoder = Stack([block(True) for _ in range(layers)])
        last = nn.LayerNorm if norm_first else (lambda _: nn.Identity())
        self.norms = nn.ModuleList((last(dim), last(dim)))

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embed tokens and add their positions."""
        places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) * math.sqrt(self.dim)
        summed: Tensor = x + self.absolute(places).to(x.dtype)
        return summed

    def encode(self, source: Tensor, padding: Tensor | None = None) -> Tensor:
        """Encode the source [b, m], with `padding` [b, m] true at real tokens: [b, m, dim]."""
        encoded: Tensor = self.norms[0](self.encoder(self.embed(source), padding=padding))
        return encoded

    def decode(
        self, target: Tensor, context: Tensor | None, padding: Tensor | None = None,
        memory: LayerMemory | None = None,
    ) -> Tensor:  # fmt: skip
        """Score the token after each of target [b, n], given the encoded source."""
        x = self.embed(target, 0 if memory is None else memory.seen)
        x = self.decoder(x, context, context_padding=padding, memory=memory)
        scores: Tensor = self.norms[1](x) @ self.embedding.weight.T
        return scores

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        """Encode the source and score the target."""
        return self.decode(target, self.encode(source, padding), padding)

    @torch.no_grad()
    def generate(
        self, source: Tensor, *, start: int, count: int, padding: Tensor | None = None,
        temperature: float = 0.0, generator: torch.Generator | None = None, memory: Any = None,
    ) -> Tensor:  # fmt: skip
        """Generate `count` tokens after `start`: [b, 1 + count]; `memory` as in `Layer.memory`."""
        context: Tensor | None = self.encode(source, padding)
        memory = self.decoder.memory(memory)
        fed = torch.full_like(source[:, :1], start)
        made = [fed]
        for _ in range(count):
            scores = self.decode(fed, context, padding, memory)[:, -1]
            fed = pick(scores, temperature, generator=generator)[:, None]
            made.append(fed)
            context = padding = None  # the memory has them
        return torch.cat(made, dim=1)


method(
    "fixed_head_size",
    call='import regard\nlayer = regard.layer("mha", 256, heads=16, head_dim=64)  # not 256 / 16',
)(Attention)
