"""Masks of transformers as rules: the arguments of a mask function, kept until they are needed.

The model passes this object in place of a tensor. A model that uses it as a tensor gets the mask of
the implementation that we replace (bool, or 0 and the lowest number), which costs [b, 1, n, m]; a
warning says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.core.support import (
    Blocks,
    Causal,
    Documents,
    Everything,
    Padding,
    Support,
    Where,
    Window,
)
from regard.models.configs import asks_for_weights, stored
from regard.models.forward import current_forward

# Every forward builds masks; what they share is built once.
EVERYTHING, CAUSAL = Everything(), Causal()


class Mask:
    """Lengths, offsets, the mask function and the padding of one forward.

    Queries start at q_offset, keys at kv_offset; in the rule keys start at 0.
    """

    def __init__(self, pieces: dict[str, Any]) -> None:
        self.pieces = pieces
        self.b, self.n = pieces["batch_size"], pieces["q_length"]
        self.m = pieces["kv_length"]
        self.start = int(pieces.get("kv_offset") or 0)
        self.offset = int(pieces.get("q_offset") or 0) - self.start
        now = current_forward()
        # For a text that is spread over devices, the mask of the whole text.
        self.whole = None if now is None else now.whole
        if self.whole is not None:
            self.start, self.offset, self.m = 0, self.whole.first, self.whole.length
            self.n = self.m - self.offset
        self.device = pieces.get("device", "cpu")
        self.rules: dict[Any, Any] = {}
        # The implementation that the model would use without us.
        self.config = pieces.get("config")
        asked = stored(self.config).get("_attn_implementation_internal")
        self.replaced: str | None = getattr(asked, "replaced", None)
        self._dense: Tensor | None = None
        self._plain: Tensor | None = None
        self._support: Support | None = None
        self._weights: bool | None = None
        # The forward whose layers asked last whether weights are collected, and the answer.
        self.asked: tuple[Any, bool] | None = None

    @property
    def weights(self) -> bool:
        """Whether the config asks for weights; cached, since reading a config is slow."""
        if self._weights is None:
            self._weights = asks_for_weights(self.config)
        return self._weights

    @property
    def shape(self) -> torch.Size:
        """The shape of the mask as a tensor."""
        return torch.Size((self.b, 1, self.n, self.m))

    @property
    def ndim(self) -> int:
        """The number of axes of the mask as a tensor."""
        return 4

    @property
    def support(self) -> Support:
        """Which pairs may attend."""
        if self._support is None:
            self._support = self._read()
        return self._support

    def _read(self) -> Support:
        function = self.pieces.get("mask_function")
        found: Support = EVERYTHING if function is None else self._of(function)
        padding, whole = self.pieces.get("attention_mask"), self.whole
        if whole is not None:
            padding = whole.padding
            found = found if whole.documents is None else found & Documents(whole.documents)
        if padding is not None:
            valid = padding[:, self.start : self.start + self.m].bool()
            if valid.shape[1] < self.m:
                valid = torch.nn.functional.pad(valid, (0, self.m - valid.shape[1]))
            if not bool(valid.all()):
                found = found & Padding(valid)
        return found

    def _of(self, function: Callable[..., Any]) -> Support:
        """Read one mask function by its name and what it closes over."""
        name = getattr(function, "__qualname__", "").split(".")[0]
        if name == "causal_mask_function":
            # A single query at or past the last key sees all keys.
            return EVERYTHING if self.offset >= self.m - 1 else CAUSAL
        inside = _closed_over(function)
        last = self.offset + self.n - 1
        if name == "bidirectional_mask_function":
            return EVERYTHING
        if name == "sliding_window_overlay":  # j > i - w; another part limits how far ahead
            width = int(inside["sliding_window"])
            return EVERYTHING if width > last else Window(width, self.m + last + 1)
        if name == "sliding_window_bidirectional_overlay":  # |i - j| <= w
            return Window(int(inside["sliding_window"]) + 1)
        if name in ("and_masks", "or_masks"):
            parts = [self._of(f) for f in inside["mask_functions"]]
            found = parts[0]
            for part in parts[1:]:
                found = found & part if name == "and_masks" else found | part
            return found
        if name == "chunked_overlay":
            size, left = int(inside["chunk_size"]), inside["left_padding"]
            if self.start % size == 0 and not bool(left.any()):
                return Blocks(size)
        if name == "packed_sequence_mask_function" and self.whole is not None:
            return EVERYTHING  # made from a part of the positions; see `whole`
        if name == "packed_sequence_mask_function" and self.offset == 0 and self.start == 0:
            return Documents(inside["packed_sequence_mask"])
        if name == "remap_positions_for_packed_sequence":
            # Inside a document positions differ by a shift, which distances ignore.
            part = self._of(inside["mask_function"])
            if part.anchor() == 0:
                return part
        return Where(self._asked(function))

    def _asked(self, function: Callable[..., Any]) -> Callable[..., Tensor]:
        start, b_last = self.start, self.b - 1
        i_last, j_last = self.offset + self.n - 1, self.m - 1

        def test(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            # Tiles extend beyond the ends, the function's tables do not.
            i, j = i.clamp(0, max(i_last, j_last)), j.clamp(0, max(i_last, j_last))
            on = function(b.clamp(max=b_last), h, i + start, j + start)
            return on if isinstance(on, Tensor) else torch.full_like(i + j, on, dtype=torch.bool)

        return test

    def dense(self) -> Tensor:
        """Return the mask as a bool tensor [b, 1, n, m]."""
        if self._dense is None:
            i = torch.arange(self.n, device=self.device)[:, None] + self.offset
            j = torch.arange(self.m, device=self.device)
            b = torch.arange(self.b, device=self.device).view(-1, 1, 1, 1)
            allowed = self.support.allows(b, b[:1, 0] * 0, i, j)
            self._dense = allowed.expand(self.b, 1, self.n, self.m)
        return self._dense

    def to(self, *_: Any, **__: Any) -> Mask:
        """Return self."""
        return self

    def contiguous(self) -> Mask:
        """Return self."""
        return self

    def dim(self) -> int:
        """The number of axes of the mask as a tensor."""
        return 4

    def __getitem__(self, index: Any) -> Any:
        return self._tensor()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tensor(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(x: Any) -> Any:
            return x._tensor() if isinstance(x, Mask) else x

        args = torch.utils._pytree.tree_map(plain, args)
        return func(*args, **torch.utils._pytree.tree_map(plain, kwargs or {}))

    def _tensor(self) -> Tensor:
        if self._plain is None:
            self._plain = self._of_replaced()
            size = self._plain.numel() * self._plain.element_size()
            warnings.warn(
                "this model uses its mask as a tensor, so a dense mask is built for it: "
                f"{size} bytes",
                stacklevel=3,
            )
        return self._plain

    def _of_replaced(self) -> Tensor:
        """Return the mask of the implementation that we replace."""
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        make: Any = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.get(str(self.replaced))
        if make is not None:
            skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
            made = make(**{**self.pieces, **skips})
            if isinstance(made, Tensor) and made.dim() == 4:
                return made
        return self.dense()


def _operator(name: str) -> Callable[..., Any]:
    def run(self: Mask, *others: Any) -> Any:
        others = tuple(x._tensor() if isinstance(x, Mask) else x for x in others)
        return getattr(self._tensor(), name)(*others)

    return run


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "and", "or", "invert"):
    setattr(Mask, f"__{_name}__", _operator(f"__{_name}__"))


def make_mask(*positional: Any, **pieces: Any) -> Mask:
    """Build a mask from the arguments that transformers passes to a mask function."""
    order = (
        "batch_size",
        "q_length",
        "kv_length",
        "q_offset",
        "kv_offset",
        "mask_function",
        "attention_mask",
    )
    pieces = {**dict(zip(order, positional, strict=False)), **pieces}
    ready = pieces.get("attention_mask")
    # With a static cache, generate builds the mask first, and the model passes it here again.
    return ready if isinstance(ready, Mask) else Mask(pieces)


def _closed_over(function: Callable[..., Any]) -> dict[str, Any]:
    cells = getattr(function, "__closure__", None) or ()
    code = getattr(function, "__code__", None)
    return (
        {}
        if code is None
        else dict(zip(code.co_freevars, (c.cell_contents for c in cells), strict=True))
    )
