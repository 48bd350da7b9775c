"""Whole models from layers: blocks, stacks, and a language model that generates.

A `Stack` runs blocks one after another. `sources[i]` names the layer whose keys and values layer i
reads: usually itself, an earlier one where layers share keys (cross-layer attention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.layers.arguments import need_share, need_size
from regard.layers.base import Layer, with_keys
from regard.memories.layer import LayerMemory


class FeedForward(nn.Module):
    """A SwiGLU feed-forward layer; `width` is 8/3 of `dim` unless given.

    >>> FeedForward(24)(torch.randn(1, 5, 24)).shape
    torch.Size([1, 5, 24])
    """

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        width = 8 * ((dim + 2) // 3) if width is None else width
        need_size("width", width)
        self.to_gate = nn.Linear(dim, width, bias=False)
        self.to_width = nn.Linear(dim, width, bias=False)
        self.to_out = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token."""
        mapped: Tensor = self.to_out(F.silu(self.to_gate(x)) * self.to_width(x))
        return mapped


class Block(nn.Module):
    """A transformer block: a mixer, cross-attention if there is a `cross` layer, a feed-forward.

    Each is residual. `norm_first=False` normalizes the sum instead of the input, as the original
    transformer did. `norm` builds a norm of `dim` channels.

    >>> from regard.layers import Attention
    >>> block = Block(Attention(32, heads=4, causal=True))
    >>> block(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    def __init__(
        self,
        mixer: Layer,
        *,
        cross: Layer | None = None,
        feed_forward: nn.Module | None = None,
        norm: Callable[[int], nn.Module] = nn.RMSNorm,
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        need_share("dropout", dropout)
        for name, x in (("mixer", mixer), ("cross", cross)):
            if not isinstance(x, Layer) and not (name == "cross" and x is None):
                fail(RuleError, name, shape_of(x), "a Layer", "build one with regard.layer(...)")
        self.dim = dim = mixer.dim
        self.mixer, self.cross = mixer, cross
        self.feed_forward = FeedForward(dim) if feed_forward is None else feed_forward
        self.norms = nn.ModuleList(norm(dim) for _ in range(2 if cross is None else 3))
        self.norm_first, self.dropout = norm_first, nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        memory: LayerMemory | None = None,
        context_padding: Tensor | None = None,
        **around: Any,
    ) -> Tensor:
        """Run the block on x [b, n, dim]; `around` are further arguments of the mixer."""
        own = None if memory is None else memory.of_kind("mixer", self.mixer.memory)

        def mix(y: Tensor) -> Tensor:
            mixed: Tensor = self.mixer(y, memory=own, **around)
            return mixed

        x = self._step(0, x, mix)
        if self.cross is not None:
            cross = self.cross
            of_context = None if memory is None else memory.of_kind("cross", cross.memory)
            x = self._step(
                1, x, lambda y: cross(y, context, memory=of_context, padding=context_padding)
            )
        if memory is not None:
            memory.seen += x.shape[1]
        mapped: Tensor = self._step(-1, x, self.feed_forward)
        return mapped

    def _step(self, number: int, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        norm = self.norms[number]
        if self.norm_first:
            added: Tensor = x + self.dropout(change(norm(x)))
            return added
        summed: Tensor = norm(x + self.dropout(change(x)))
        return summed


class Stack(nn.Module):
    """Blocks one after another; `sources[i]` is the layer whose keys layer i reads.

    `checkpointing` recomputes each block in the backward pass instead of keeping its activations.

    >>> from regard.layers import Attention
    >>> stack = Stack([Block(Attention(32, heads=4)) for _ in range(2)])
    >>> stack(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        sources: Sequence[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not blocks:
            fail(ShapeError, "blocks", "none", "at least one block", "pass a list of blocks")
        self.blocks = nn.ModuleList(blocks)
        self.dim = blocks[0].dim
        self.sources = list(range(len(blocks))) if sources is None else list(sources)
        self.checkpointing = checkpointing
        need_sources(self.sources, len(blocks))

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, memory: LayerMemory | None = None,
        **around: Any,
    ) -> Tensor:  # fmt: skip
        """Run all blocks on x [b, n, dim]."""
        shared: dict[int, Any] = {}
        for i, block in enumerate(self.blocks):
            source = self.sources[i]
            between: dict[str, Any] = {} if source == i else {"keys": shared[source]}
            own = None if memory is None else memory.of_kind(f"{i}", lambda: LayerMemory("block"))

            def run(
                y: Tensor, block: nn.Module = block, own: Any = own, between: Any = between
            ) -> Any:
                return block(y, context, memory=own, between=between, **around)

            if self.checkpointing and self.training and memory is None:
                x = checkpoint(run, x, use_reentrant=False)
            else:
                x = run(x)
            if source == i and i in self.sources[i + 1 :]:
                shared[i] = between["keys"]
        if memory is not None:
            memory.seen += x.shape[1]
        return x

    def memory(self, keys: Any = None) -> LayerMemory:
        """Build an empty memory for all blocks; `keys` as in `Layer.memory`."""
        return with_keys(LayerMemory("stack", self), keys)


def need_sources(sources: Sequence[int], layers: int) -> None:
    """Raise unless each layer reads its own keys, or those of an earlier one that owns some."""
    for i, source in enumerate(sources):
        if len(sources) != layers or not 0 <= source <= i or sources[source] != source:
            fail(
                RuleError, "sources", list(sources),
                f"{layers} layers, each itself or an earlier one that owns its keys",
                "pass sources=[0, 0, 2, 2], say",
            )  # fmt: skip


def grouped_sources(layers: int, size: int) -> list[int]:
    """Return sources by which every `size` layers in a row read the keys of the first.

    >>> grouped_sources(5, 2)
    [0, 0, 2, 2, 4]
    """
    need_size("size", size)
    return [i - i % size for i in range(layers)]


class LanguageModel(nn.Module):
    """A language model: an embedding, a stack, a norm and a head.

    `absolute` is a module that maps positions [n] to [n, dim], added to the tokens; for layers
    without positions of their own. The head shares the embedding's weights if `tied`.

    >>> import regard
    >>> model = regard.model(["mha"] * 2, dim=32, heads=4, vocab=50, position="rotary")
    >>> model(torch.randint(0, 50, (1, 7))).shape
    torch.Size([1, 7, 50])
    """

    def __init__(
        self, stack: Stack, vocab: int, *, absolute: nn.Module | None = None, tied: bool = True,
        norm: Callable[[int], nn.Module] = nn.RMSNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        need_size("vocab", vocab)
        self.embedding = nn.Embedding(vocab, stack.dim)
        nn.init.normal_(self.embedding.weight, std=0.02 if tied else 1.0)
        self.absolute, self.stack, self.norm = absolute, stack, norm(stack.dim)
        self.head = nn.Linear(stack.dim, vocab, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, *, memory: LayerMemory | None = None,
        positions: Tensor | None = None, **around: Any,
    ) -> Tensor:  # fmt: skip
        """Return logits of the next token at every position: tokens [b, n] to [b, n, vocab]."""
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point():
            fail(ShapeError, "tokens", shape_of(tokens), "integers [b, n]", "add the batch axis")
        x = self.embedding(tokens)
        if self.absolute is not None:
            start = 0 if memory is None else memory.seen
            places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
            x = x + self.absolute(places if positions is None else positions).to(x.dtype)
        scores: Tensor = self.head(
            self.norm(self.stack(x, memory=memory, positions=positions, **around))
        )
        return scores

    def memory(self, keys: Any = None) -> LayerMemory:
        """Build an empty memory to decode with.

        `keys` names the memory of keys: a name ("int8", "int4", "int2", "low_rank", "ring",
        "paged", "hosted", "mapped"), a class of `regard.memories`, or a function of the layer's
        rule.
        """
        return self.stack.memory(keys)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        count: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | None = None,
        padding: Tensor | None = None,
        generator: torch.Generator | None = None,
        memory: Any = None,
    ) -> Tensor:
        """Continue tokens [b, n] by `count` tokens: greedily, or sampled at a temperature.

        A prompt shorter than others is padded on the left, with `padding` [b, n] true at its real
        tokens. After `stop` a row repeats it. `memory` is what `self.memory` takes, or a memory,
        which continues from what it has seen. Returns [b, n + count].
        """
        need_size("count", count, 0)
        if temperature < 0:
            fail(ValueRangeError, "temperature", temperature, "0 or more", "0 takes the best token")
        memory = memory if isinstance(memory, LayerMemory) else self.memory(memory)
        fed, wanted = tokens, tokens.shape[1] + count
        positions = None if padding is None else (padding.long().cumsum(1) - 1).clamp_min(0)
        done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for _ in range(count):
            scores = self(fed, memory=memory, positions=positions, padding=padding)[:, -1]
            fed = pick(scores, temperature, top_k, top_p, generator)[:, None]
            if stop is not None:
                fed = fed.masked_fill(done[:, None], stop)
                done = done | (fed[:, 0] == stop)
            tokens = torch.cat((tokens, fed), dim=1)
            if positions is not None and padding is not None:
                positions, padding = positions[:, -1:] + 1, torch.ones_like(padding[:, -1:])
            if bool(done.all()) and stop is not None:
                return F.pad(tokens, (0, wanted - tokens.shape[1]), value=stop)
        return tokens


def pick(
    scores: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Pick a token for each row of scores [b, vocab]: the best, or one sampled.

    >>> pick(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0.0).tolist()
    [1]
    """
    if temperature == 0:
        return scores.argmax(-1)
    scores = scores.float() / temperature
    if top_k is not None:
        need_size("top_k", top_k)
        least = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p is not None:
        if not 0 < top_p <= 1:
            fail(ValueRangeError, "top_p", top_p, "a share above 0 and up to 1", "0.9 is usual")
        ordered, places = scores.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        scores = scores.masked_fill(beyond.gather(-1, places.argsort(-1)), -torch.inf)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
