"""How vLLM's own kernel for CPUs lays keys out in its cache, so that both may read one cache.

A head of a block holds its keys, then its values, each in an order that suits the kernel: keys by
channel in tiles of tokens, or both in pairs for matrix units. Which order it is, is found by having
vLLM write known numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.core.keys import Keys
from regard.core.paged_keys import Paged


class Tiling(NamedTuple):
    """The order of the numbers [block, d] of one head of one block.

    `shape` is that of the numbers as stored; its axes are `tokens` and `channels`, slowest first.

    >>> by_channel = Tiling((2, 3, 4), (0, 2), (1,))  # 8 tokens of 3 channels, in tiles of 4
    >>> by_channel.unpack(torch.arange(24.0))[:5, 0].tolist()
    [0.0, 1.0, 2.0, 3.0, 12.0]
    """

    shape: tuple[int, ...]
    tokens: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def pairs(self) -> bool:
        """Whether channels lie in twos, side by side in both orders."""
        last = len(self.shape) - 1
        return self.channels[-1] == last and self.shape[last] == 2 and len(self.channels) > 1

    def unpack(self, stored: Tensor) -> Tensor:
        """Return [..., block, d] of [..., block d] as stored."""
        if self.pairs and stored.element_size() == 2 and stored.is_contiguous():
            # Two numbers of 16 bits are moved as one of 32.
            halved = Tiling(self.shape[:-1], self.tokens, self.channels[:-1])
            return halved.unpack(stored.view(torch.int32)).contiguous().view(stored.dtype)
        lead = stored.dim() - 1
        axes = [lead + x for x in (*self.tokens, *self.channels)]
        ordered = stored.unflatten(-1, self.shape).permute(*range(lead), *axes)
        return ordered.flatten(lead, lead + len(self.tokens) - 1).flatten(lead + 1)

    def take(self, pool: Tensor, page: Tensor, head: Tensor, slot: Tensor) -> Tensor:
        """Return [..., d]: tokens at `slot` of pages, heads of a pool [pages, heads, block d]."""
        index: list[Any] = [slice(None)] * len(self.shape)
        for axis in reversed(self.tokens):
            index[axis], slot = slot % self.shape[axis], slot // self.shape[axis]
        found = pool.unflatten(-1, self.shape)[(page, head, *index)]
        return found.flatten(page.dim())


@dataclass(frozen=True)
class CacheLayout:
    """How keys and values of a head of a block are stored."""

    keys: Tiling
    values: Tiling


def layouts(block: int, d: int) -> Iterator[CacheLayout]:
    """Yield the orders that are known, for blocks of `block` tokens and heads of `d`."""
    plain = Tiling((block, d), (0,), (1,))
    for tile in dict.fromkeys((32, 16, block)):
        if block % tile == 0:
            yield CacheLayout(Tiling((block // tile, d, tile), (0, 2), (1,)), plain)
    if block % 16 == 0 and d % 16 == 0:  # pairs, as matrix units read 16 bits
        yield CacheLayout(
            Tiling((block // 16, d // 2, 16, 2), (0, 2), (1, 3)),
            Tiling((d // 16, block // 2, 16, 2), (1, 3), (0, 2)),
        )
    yield CacheLayout(plain, plain)


# Writes keys and values [tokens, g, d] into a cache [blocks, g, block, 2 d], at slots.
Write = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def find_layout(write: Write, block: int, d: int, dtype: torch.dtype) -> CacheLayout | None:
    """Return the order in which `write` stores keys and values; None if it is not known.

    >>> def write(k, v, cache, slots):
    ...     found = cache.view(2, 1, 2, 4, 3)
    ...     found[0, :, 0], found[0, :, 1] = k.transpose(0, 1), v.transpose(0, 1)
    >>> find_layout(write, 4, 3, torch.float32).keys.shape
    (4, 3)
    """
    # Numbers that 16 bits tell apart, in an order that no layout keeps by chance.
    draw = torch.Generator().manual_seed(0)
    k, v = ((torch.randint(0, 255, (block, 1, d), generator=draw)).to(dtype) for _ in range(2))
    cache = torch.zeros(2, 1, block, 2 * d, dtype=dtype)
    write(k, v, cache, torch.arange(block))
    stored = cache[0, 0].view(2, block * d)
    for one in layouts(block, d):
        found = one.keys.unpack(stored[0]), one.values.unpack(stored[1])
        if torch.equal(found[0], k[:, 0]) and torch.equal(found[1], v[:, 0]):
            return one
    return None


@dataclass(frozen=True, eq=False, repr=False)
class ServerPages(Paged):
    """Pages of vLLM's cache, in the order that its own kernel reads: see `Paged`.

    k, v [pages, x, page, d] hold the numbers of a head in the order of `layout`; only `dense`,
    `gather` and `since` put them in order, and only those that are asked for. Every row has
    `longest` keys: a server counts them, and they are made for each layer of each step, so nothing
    is looked at again.
    """

    form: ClassVar[str] = "vllm"
    layout: CacheLayout | None = None

    def __post_init__(self) -> None:
        assert self.longest is not None

    @cached_property
    def dense_full(self) -> bool:
        """Whether all rows are equally long, and full: they are."""
        return True

    @property
    def kind(self) -> Hashable:
        """Whether heads have pages of their own counts as well."""
        return super().kind, self.table.shape[1], self.k.shape[2]

    def take(self, slots: Tensor, *, full: bool | None = None) -> Keys:
        """Return the keys of slots [1, g, c]; whole pages of each head stay as they are."""
        pages = self._whole_pages(slots) if full else None
        if pages is None:
            return super().take(slots, full=full)
        _, g, c = slots.shape
        heads = torch.arange(g, device=slots.device, dtype=self.table.dtype)[:, None]
        return ServerPages(
            self.k.flatten(0, 1)[:, None], self.v.flatten(0, 1)[:, None],
            self.table.take(pages) * g + heads, torch.full((1, g), c, device=slots.device),
            real=self.real, longest=c, layout=self.layout,
        )  # fmt: skip

    def _whole_pages(self, slots: Tensor) -> Tensor | None:
        """Return the pages [1, g, n] that slots are, in their order; None if they are no pages."""
        page, c = self.k.shape[2], slots.shape[2]
        if self.table.shape[:2] != (1, 1) or self.at is not None:
            return None
        first = slots[..., ::page]
        want = (first[..., None] + _line(page, slots.device)).flatten(2)[..., :c]
        if not torch.equal(want, slots):
            return None
        pages = first // page
        return pages if torch.equal(pages * page, first) else None

    def _gathered(self, x: Tensor) -> Tensor:
        """Copy the pages of each row side by side, in order: [b, g, m, d]."""
        assert self.layout is not None
        b, t, pages = self.table.shape
        tiling = self.layout.keys if x is self.k else self.layout.values
        pool = x.flatten(2)
        found = torch.stack([pool[page] for page in self.table.flatten().tolist()])
        made = tiling.unpack(found).unflatten(0, (b, t, pages)).permute(0, 1, 3, 2, 4, 5)
        return made.reshape(b, t * x.shape[1], pages * x.shape[2], -1)[:, :, : self.m]

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copy keys of slots [b, g, c] alone, from the pages that they lie in."""
        assert self.layout is not None
        page, (b, g, _) = self.k.shape[2], slots.shape
        pages = self.table.long().expand(b, g, -1).gather(2, slots // page)
        heads = torch.arange(g, device=slots.device)[:, None]
        heads = heads if self.table.shape[1] == 1 else torch.zeros_like(heads)
        both = ((self.layout.keys, self.k), (self.layout.values, self.v))
        found = [tiling.take(x.flatten(2), pages, heads, slots % page) for tiling, x in both]
        where = self.positions
        if where is not None:
            empty = where.expand(b, g, -1).gather(2, slots)[..., None] < 0
            found = [x.masked_fill(empty, 0) for x in found]
        return found[0], found[1]


@lru_cache(maxsize=16)
def _line(page: int, device: torch.device) -> Tensor:
    """Return the slots of a page."""
    return torch.arange(page, device=device)


@lru_cache(maxsize=64)
def layout_of(isa: str, block: int, d: int, dtype: torch.dtype) -> CacheLayout | None:
    """Return how vLLM's kernel for a kind of processor (`isa`) stores keys, if that is known."""
    from vllm import _custom_ops as ops

    def write(k: Tensor, v: Tensor, cache: Tensor, slots: Tensor) -> None:
        halves = cache.view(len(cache), 1, 2 * block, d).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            k, v, *halves, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
        )

    return find_layout(write, block, d, dtype)
