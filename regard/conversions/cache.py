"""A layer of a transformers cache that holds the memory of a layer of Regard."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from regard.core.errors import CapabilityError, fail
from regard.memories.layer import LayerMemory
from regard.models.cache import HoldingLayer


class OwnCacheLayer(HoldingLayer):  # type: ignore[no-untyped-call]
    """Hold a `LayerMemory` among the layers of a transformers cache."""

    memory: LayerMemory | None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Refuse keys of attention that was not swapped."""
        fail(
            CapabilityError, "past_key_values", "keys of the model's own attention",
            "calls of the layer that was swapped in", "start the text with a new cache",
        )  # fmt: skip

    @property
    def batch(self) -> int | None:
        """Rows of the batch."""
        return None if self.memory is None else self.memory.batch
