"""What a kind of layer can do, and the checked input of one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.core.errors import DtypeError, ShapeError, fail, shape_of
from regard.core.scan import starts
from regard.memories.layer import LayerMemory

if TYPE_CHECKING:
    from regard.layers.base import Layer


@dataclass(frozen=True)
class Capabilities:
    """What a kind of layer can do. Each field is a promise that the conformance suite tries.

    - `causal`, `bidirectional`: attend to the past alone, or to the whole sequence
    - `cross`: attend to a context
    - `decode`: continue token by token with a memory, equal to the run over the whole sequence
    - `constant_memory`: that memory stops growing
    - `linear`: time and memory grow with the length, not with its square
    - `padding`, `documents`: mask padding out, keep packed documents apart
    - `left_padding`: start after padding (blocks counted from the first position cannot)
    - `any_length`: no size of the layer depends on the number of tokens
    - `multihead_weights`: take over the weights of multi-head attention unchanged
    - `exact_gradients`: gradients are exact; a straight-through estimator's are not
    - `meta`: compute shapes on the `meta` device, where tensors have no data
    - `vmap`: run under `torch.func.vmap`, which forbids branching on the values of tensors

    >>> Capabilities(cross=False).cross
    False
    """

    causal: bool = True
    bidirectional: bool = True
    cross: bool = True
    decode: bool = True
    constant_memory: bool = False
    linear: bool = False
    padding: bool = True
    left_padding: bool = True
    documents: bool = True
    any_length: bool = True
    multihead_weights: bool = False
    exact_gradients: bool = True
    meta: bool = True
    vmap: bool = True


@dataclass
class LayerInput:
    """The checked input of a layer: tokens x [b, n, dim], and everything known about them.

    `context` [b, m, context_dim] is what is attended to, x itself where none was passed (`crosses`
    is false then). `positions` [n] or [b, n] are those of the tokens in their sequence, `offset`
    counts the tokens before this call. `padding` [b, m] is true at real keys; the others have been
    set to zero. `documents` [b, n] and `context_documents` [b, m] are ids of packed documents.
    `between` is shared by the layers of a stack.

    >>> x = torch.randn(1, 5, 8)
    >>> LayerInput(x, x, False, torch.arange(5)).plain
    True
    """

    x: Tensor
    context: Tensor
    crosses: bool
    positions: Tensor
    offset: int = 0
    padding: Tensor | None = None
    documents: Tensor | None = None
    context_documents: Tensor | None = None
    memory: LayerMemory | None = None
    between: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether there is neither memory, nor padding, nor documents."""
        return self.memory is None and self.padding is None and self.documents is None

    def pieces(self, size: int, memory: LayerMemory) -> Iterator[LayerInput]:
        """Yield this input `size` tokens at a time; `memory` carries on from piece to piece."""
        for start in range(0, self.x.shape[1], size):
            some = slice(start, start + size)
            x = self.x[:, some]
            yield replace(
                self, x=x, context=x, memory=memory, offset=self.offset + start,
                positions=self.positions[..., some],
                padding=None if self.padding is None else self.padding[:, some],
            )  # fmt: skip

    def as_passed(self) -> tuple[Tensor, Tensor | None]:
        """Return x and context as they were passed, for a layer inside this one."""
        return self.x, self.context if self.crosses and self.context is not self.x else None

    def for_part(self, name: str, part: Layer) -> dict[str, Any]:
        """Return the keyword arguments for a layer inside this one, its memory under a name."""
        memory = None if self.memory is None else self.memory.of_kind(name, part.memory)
        return {
            "positions": self.positions, "padding": self.padding, "documents": self.documents,
            "context_documents": self.context_documents, "memory": memory,
        }  # fmt: skip


def need_rows(name: str, x: Tensor | None, like: Tensor, kinds: tuple[torch.dtype, ...]) -> None:
    """Raise unless x is None or has an entry for each token of `like` [b, n, ...]."""
    if x is None:
        return
    shape = [like.shape[0], like.shape[1]]
    if not isinstance(x, Tensor) or list(x.shape) != shape:
        fail(ShapeError, name, shape_of(x), f"a tensor {shape}", "pass one entry for each token")
    if x.dtype not in kinds:
        wanted = " or ".join(str(kind) for kind in kinds)
        fail(DtypeError, name, f"{x.dtype}", wanted, f"cast it to {kinds[0]}")


def positions_of(
    x: Tensor, positions: Tensor | None, documents: Tensor | None, offset: int
) -> Tensor:
    """Return the positions of the tokens x [b, n, dim]: [n] or [b, n], from 0 in each document."""
    n = x.shape[1]
    if positions is None:
        places = torch.arange(offset, offset + n, device=x.device)
        if documents is None:
            return places
        return places - torch.where(starts(documents), places, offset).cummax(1).values
    shapes = ([n], [x.shape[0], n], [1, n])
    if not isinstance(positions, Tensor) or list(positions.shape) not in shapes:
        fail(
            ShapeError, "positions", shape_of(positions), f"[{n}] or [{x.shape[0]}, {n}]",
            "pass the position of each token of x",
        )  # fmt: skip
    if positions.is_floating_point() or positions.dtype == torch.bool:
        fail(DtypeError, "positions", f"{positions.dtype}", "integers", "pass torch.arange(...)")
    return positions
