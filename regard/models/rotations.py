"""Queries and keys as they were before a model of transformers turned them by position."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, fail
from regard.core.rotary import turned


class Rotations:
    """Knows how a model turns queries and keys, and where the tokens of the last forward stand.

    A model that turns none gives them back as they are. `close` lets go of the model.
    """

    def __init__(self, model: Any) -> None:
        found = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        self.module: Any = found[0] if found else None
        # Positions of the tokens of the last forward, [b or 1, n].
        self.positions: Tensor | None = None
        self._hook: Any = None
        if self.module is None:
            return
        asked = list(inspect.signature(self.module.forward).parameters)
        if len(found) > 1 or asked != ["x", "position_ids"]:
            fail(
                CapabilityError, "model", f"{type(model).__name__}, whose layers turn differently",
                "one rotation for all layers", "take a policy that needs no keys from before it",
            )  # fmt: skip
        self._hook = self.module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]

    def close(self) -> None:
        """Let go of the model."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self.positions = None, None

    def angles(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [b, n, r] of positions [b, n]."""
        noted = self.positions
        cos, sin = self.module(like.float(), positions)
        self.positions = noted
        half = cos.shape[-1] // 2
        return cos[..., :half], sin[..., :half]

    def forth(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn x [b, h, n, d] to positions [b or 1, n]."""
        return x if self.module is None else turned(x, self.angles(positions, x))

    def back(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn x [b, h, n, d] back from positions [b or 1, n], and undo what a schedule scales."""
        if self.module is None:
            return x
        cos, sin = self.angles(positions, x)
        size = cos.square() + sin.square()
        return turned(x, (cos / size, -sin / size))


def need_rotations(model: Any, keys: Any) -> None:
    """Raise unless keys of one token, said again and again, are equal once they are turned back.

    `keys(ids)` gives those of the first layer, turned back [b, g, n, d].
    """
    number = 3
    ids = torch.full((1, 6), number)
    found = keys(ids)
    spread = (found - found[:, :, :1]).abs().max() / found.abs().max().clamp(min=1e-9)
    if float(spread) > 1e-2:
        fail(
            CapabilityError, "model", f"{type(model).__name__}, which turns channels otherwise",
            "one that pairs the halves of a head", "take a policy that needs no such keys",
        )  # fmt: skip


__all__ = ["Rotations", "need_rotations"]
