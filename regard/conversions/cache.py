"""A layer of a transformers cache that holds what one of Regard's layers keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from regard.core.errors import CapabilityError, fail
from regard.memories.layer import LayerMemory


class OwnCacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Hold a `LayerMemory` among the layers of a transformers cache."""

    is_croppable = True
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory: LayerMemory | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the layer fills its memory itself."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Refuse keys of attention that was not swapped."""
        fail(
            CapabilityError, "past_key_values", "keys of the model's own attention",
            "calls of the layer that was swapped in", "start the text with a new cache",
        )  # fmt: skip

    def get_seq_length(self) -> int:
        """Count the tokens seen."""
        return 0 if self.memory is None else self.memory.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Ask for masks over all tokens seen."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Say that there is no end."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Say that there is no end, as older versions ask."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.memory = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        if self.memory is not None:
            self.memory.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.memory is not None and self.memory.batch is not None:
            rows = torch.arange(self.memory.batch).repeat_interleave(repeats)
            self.memory.reorder(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if self.memory is not None:
            self.memory.reorder(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Go back by some tokens (a negative number), or to a length."""
        if self.memory is not None and tokens_to_remove:
            seen = self.memory.seen
            self.memory.crop(seen + tokens_to_remove if tokens_to_remove < 0 else tokens_to_remove)
