"""Layers of a transformers cache that hold our memories.

Imported only where a cache of transformers is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from regard.core.errors import CapabilityError, fail, shape_of
from regard.core.heads import take_batch
from regard.memories.bare import Bare
from regard.memories.base import KeyMemory
from regard.memories.layer import LayerMemory
from regard.memories.stores import TokenStore
from regard.models.forward import note_update


class HoldingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Base of cache layers that hold a memory: count, reorder, crop."""

    is_croppable = True
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the base has no types
        self.memory: KeyMemory | LayerMemory | None = None

    @property
    def batch(self) -> int | None:
        """Rows of the batch."""
        return None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: a memory initializes itself."""

    def get_seq_length(self) -> int:
        """Count the tokens seen, kept or not."""
        return 0 if self.memory is None else self.memory.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the sizes of masks over all tokens seen; as rules they cost nothing."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return that there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return that there is no limit (older versions)."""
        return -1

    def reset(self) -> None:
        """Drop everything."""
        self.memory = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows by beam."""
        if self.memory is not None:
            self.memory.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.memory is not None and self.batch is not None:
            self.reorder_cache(torch.arange(self.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self.reorder_cache(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Crop by a number of tokens (negative), or to a length."""
        if self.memory is not None and tokens_to_remove:
            seen = self.memory.seen
            self.memory.crop(seen + tokens_to_remove if tokens_to_remove < 0 else tokens_to_remove)


class KeyLayer(HoldingLayer):  # type: ignore[no-untyped-call]
    """Hold a memory of keys for a stage, which reads it when the layer attends."""

    memory: KeyMemory

    def __init__(self, owner: Any, number: int, cache: list[Any]) -> None:
        super().__init__()
        self.owner, self.number, self.cache = owner, number, cache
        # Whether keys were added that the stage has not read yet.
        self.unread = False
        # The keys that were returned to the model last (a weak reference): see `layer_of`.
        self.returned: Any = None
        # Which of the tokens of the running forward are real [b, n]; None where all are.
        self.valid: Tensor | None = None
        # Their positions [b, n], if the model was given any.
        self.places: Tensor | None = None
        # Real tokens of each row [b], without the last `_since`, which are real in all rows.
        self._real: Tensor | None = None
        self._since = 0
        # Whether any token so far was padding.
        self.padded = False
        # Whether the last forward added several tokens to a text.
        self._several = False
        # What policies keep beside the memory: stores by name, and the keys they belong to.
        self.extra: dict[str, TokenStore] = {}
        self.extra_at: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Start with an empty memory."""
        self._real, self._since, self.padded = None, 0, False
        self.extra, self.extra_at = {}, {}
        self.memory = self.owner.new_memory(self)

    @property
    def batch(self) -> int | None:
        """Rows of the batch."""
        return None if self._real is None else len(self._real)

    @property
    def real(self) -> Tensor:
        """Real tokens that each row has seen, [b]."""
        assert self._real is not None
        return self._real + self._since

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Extend the memory, and return the new keys, by which attention finds this layer."""
        if not self.owner.active:
            fail(
                CapabilityError, "past_key_values", "a cache of a model that is no longer shrunk",
                "the shrunk model, or a new cache",
                "continue inside `with regard.shrink(...)`, or start the text again",
            )  # fmt: skip
        b, n = key_states.shape[0], key_states.shape[2]
        keep = self.valid if self.valid is not None and self.valid.shape == (b, n) else None
        if self._real is None:
            self._real = torch.zeros(b, dtype=torch.long, device=key_states.device)
        if keep is None:
            self._since += n
        else:
            self.padded = True
            self._real = self._real + keep.sum(1)
        self._several = n > 1 and self.memory.seen > 0
        if isinstance(self.memory, Bare):
            self.memory.stand(self.places)
        self.memory.extend(key_states, value_states, keep)
        self.is_initialized = self.unread = True
        key_states = key_states.view_as(key_states)  # a tensor object of our own, to be recognized
        note_update(self, key_states)
        return key_states, value_states

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyLayer:
        # A copy of a cache has the same stage.
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for name, x in self.__dict__.items():
            made.__dict__[name] = x if name == "owner" else copy.deepcopy(x, memo)
        made.returned = None
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the memory, and of what policies keep beside it."""
        return self.memory.nbytes + sum(x.nbytes for x in self.extra.values())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows by beam."""
        super().reorder_cache(beam_idx)
        for store in self.extra.values():
            store.reorder(beam_idx)
        if self._real is not None:
            self._real = take_batch(self._real, beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Crop; the cropped tokens are assumed to be real."""
        if self._several:
            self.owner.tokens_were_checked()
        before = self.memory.seen
        super().crop(tokens_to_remove)
        for store in self.extra.values():
            if len(store) > 1:
                store.crop(self.memory.seen)
        self._since -= before - self.memory.seen


def _into_dynamic(cache: Any, layers: list[Any]) -> None:
    cache.layers, cache.layer_class_to_replicate = layers, None
    cache.offloading = False


# How our layers are put into an empty cache, by the type of transformers' cache.
CACHE_TYPES: dict[type[Cache], Callable[[Any, list[Any]], None]] = {DynamicCache: _into_dynamic}


def holding_cache(cache: Any, owner: Any) -> Cache:
    """Return a cache whose layers are those of `owner`: the given one, or a new one for None.

    A given one holds them already, or is empty and of a type in `CACHE_TYPES`.
    """
    if cache is None:
        return Cache(layers=owner.new_layers())
    if not isinstance(cache, Cache):
        fail(
            CapabilityError, "past_key_values", shape_of(cache), "a transformers Cache",
            "leave it out, or pass DynamicCache()",
        )  # fmt: skip
    if any(isinstance(x, KeyLayer) and x.owner is owner for x in cache.layers):
        return cache
    seen = int(cache.get_seq_length()) if cache.layers else 0
    put = next((put for kind, put in CACHE_TYPES.items() if isinstance(cache, kind)), None)
    if put is None or seen:
        fail(
            CapabilityError, "past_key_values", f"a {type(cache).__name__} with {seen} tokens seen",
            f"an empty {' or '.join(x.__name__ for x in CACHE_TYPES)}",
            "start the text inside `with regard.shrink(...)`, with a dynamic cache",
        )  # fmt: skip
    put(cache, owner.new_layers())
    return cache
