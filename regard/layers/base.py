"""What every layer is: checked inputs as a `LayerInput`, and one method that acts on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.errors import (
    CapabilityError,
    DtypeError,
    RuleError,
    ShapeError,
    ValueRangeError,
    fail,
    shape_of,
)
from regard.layers.precision import autocast_dtype
from regard.memories.choosing import key_maker
from regard.memories.layer import LayerMemory


@dataclass(frozen=True)
class Capabilities:
    """What a kind of layer can do. Each field is a promise that the conformance suite tries.

    - `causal`, `bidirectional`: attend to the past alone, or to everything
    - `cross`: attend to a context
    - `decode`: continue token by token with a memory, equal to the run over the whole sequence
    - `constant_memory`: that memory stops growing
    - `linear`: time and memory grow with the length, not with its square
    - `padding`, `documents`: mask padding out, keep packed documents apart
    - `left_padding`: start after padding (blocks counted from the first position cannot)
    - `any_length`: no size of the layer depends on the number of tokens
    - `multihead_weights`: take over the weights of multi-head attention unchanged

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


@dataclass
class LayerInput:
    """What a layer computes from: tokens x [b, n, dim], and all that is known of them.

    `context` [b, m, context_dim] is attended to, x itself where none was passed (`crosses` is false
    then). `positions` [n] or [b, n] are those of the tokens in their text, `offset` how many tokens
    came before this call. `padding` [b, m] is true at real keys; what stood at the others is zero
    by now. `documents` [b, n] and `context_documents` [b, m] are ids of packed documents. `between`
    is what the layers of one stack hand on.

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


class Layer(nn.Module):
    """A mixer of tokens: x [b, n, dim] to y [b, n, dim], with one way of calling it.

    A subclass says what it `can` do and writes `compute(input)`. `causal` is chosen when the layer
    is made; a layer with `context_dim`, or one that is not causal, may be given a context.
    """

    can: ClassVar[Capabilities] = Capabilities()
    # Arguments of a small one, and how many tokens it is tried with.
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4}
    tiny_tokens: ClassVar[int] = 24

    def __init__(self, dim: int, *, causal: bool = False, context_dim: int | None = None) -> None:
        super().__init__()
        need_size("dim", dim)
        if context_dim is not None:
            need_size("context_dim", context_dim)
            if not self.can.cross:
                self.cannot("context_dim", context_dim, "look at a context", "leave it out")
        if causal and not self.can.causal:
            self.cannot("causal", True, "be causal", "make it with causal=False")
        if not causal and context_dim is None and not self.can.bidirectional:
            self.cannot("causal", False, "look ahead", "make it with causal=True")
        if causal and context_dim is not None:
            fail(
                RuleError, "causal", "True with a context_dim", "one of the two",
                "a context has no future: use causal=False",
            )  # fmt: skip
        self.dim, self.causal = dim, causal
        self.context_dim = dim if context_dim is None else context_dim
        self.crosses = context_dim is not None

    @classmethod
    def cannot(cls, argument: str, got: object, what: str, fix: str) -> None:
        """Raise a `CapabilityError`: this kind of layer cannot do something."""
        fail(CapabilityError, argument, got, f"nothing, since {cls.__name__} cannot {what}", fix)

    @classmethod
    def decides(cls, settings: dict[str, Any], *names: str) -> None:
        """Raise if `settings` hold one of those that this kind of layer decides itself."""
        for name in names:
            if settings.get(name) is not None:
                cls.cannot(name, settings[name], f"take {name}: it decides that", f"drop {name}")

    def compute(self, input: LayerInput) -> Tensor:
        """Compute y [b, n, dim] from a checked input."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        context_documents: Tensor | None = None,
        memory: LayerMemory | None = None,
        between: dict[str, Any] | None = None,
    ) -> Tensor:
        """Mix x [b, n, dim], attending to itself or to `context` [b, m, context_dim].

        `padding` [b, m] is true at real keys, `documents` [b, n] are ids of packed documents,
        `positions` [n] or [b, n] are those of tokens if not 0, 1, 2, ...; `memory`, made by
        `layer.memory()`, carries on from earlier tokens. What stands in padded tokens never
        matters, NaN included. Under autocast the output has autocast's dtype, as that of a linear
        map.
        """
        self._need_tokens("x", x, self.dim)
        begun = isinstance(memory, LayerMemory) and memory.seen > 0
        if context is None and self.crosses and not begun:
            fail(
                ShapeError, "context", "None", f"a tensor [b, m, {self.context_dim}]",
                "pass what this cross-attention looks at",
            )  # fmt: skip
        if context is not None:
            self._need_context(x, context)
        if memory is not None:
            self._need_memory(x, memory)
        crosses = self._crossing(context, memory)
        seen = x if context is None else context
        _need_rows("padding", padding, seen, (torch.bool,))
        _need_rows("documents", documents, x, (torch.long, torch.int))
        _need_rows("context_documents", context_documents, seen, (torch.long, torch.int))
        if padding is not None and not self.can.padding:
            self.cannot("padding", "a mask", "leave padding out", "pass tokens without padding")
        if padding is not None and not self.can.left_padding and not bool(padding[:, 0].all()):
            self.cannot("padding", "tokens that begin after it", "begin later", "pad at the end")
        if documents is not None:
            self._need_documents(crosses, context_documents, memory)
        if padding is not None and (context is not None or not crosses):
            # Whatever stands in padding, NaN included, reaches neither outputs nor gradients.
            real = seen.masked_fill(~padding[..., None], 0)
            x, seen = real if x is seen else x, real
        offset = 0 if memory is None or crosses else memory.seen
        where = _positions(x, positions, documents, offset)
        input = LayerInput(
            x, seen, crosses, where, offset, padding, documents, context_documents, memory,
            {} if between is None else between,
        )  # fmt: skip
        y = self.compute(input)
        y = y.to(autocast_dtype(y))
        if memory is not None:
            memory.seen += x.shape[1]
            if memory.keys is not None:
                memory.settle()
        return y

    def _crossing(self, context: Tensor | None, memory: LayerMemory | None) -> bool:
        crosses = context is not None or self.crosses
        if memory is None:
            return crosses
        if memory.crosses is None:
            memory.crosses = crosses
        crosses = memory.crosses
        if not crosses and not self.causal:
            fail(
                RuleError, "memory", "one for a layer that looks ahead", "a causal layer",
                "make the layer with causal=True, or give it a context",
            )  # fmt: skip
        return crosses

    def memory(self, keys: Any = None) -> LayerMemory:
        """Make an empty memory, to decode with.

        Looking at itself a layer must be causal to have one. `keys` says what keys are kept in, if
        not what the layer would take: a name ("int4", "ring", "paged", ...), a class of
        `regard.memories`, or a function that makes one of the layer's rule.
        """
        if not self.can.decode:
            self.cannot("memory", "asked for", "go on token by token", "run it on whole sequences")
        if not self.causal and not self.crosses and not self.can.cross:
            fail(
                RuleError, "memory", "asked of a layer that looks ahead", "a causal layer",
                "make the layer with causal=True",
            )  # fmt: skip
        return with_keys(LayerMemory(self.describe(), self), keys)

    def describe(self) -> str:
        """Describe the layer in a line: its class and its sizes."""
        return f"{type(self).__name__}({self.dim}{', causal' if self.causal else ''})"

    def _need_tokens(self, name: str, x: object, dim: int) -> None:
        if not isinstance(x, Tensor) or x.dim() != 3:
            fail(ShapeError, name, shape_of(x), f"a tensor [b, n, {dim}]", "add the batch")
        if x.shape[2] != dim:
            fail(
                ShapeError, name, f"{list(x.shape)}", f"[b, n, {dim}]",
                f"make the layer for {x.shape[2]} channels, or project to {dim}",
            )  # fmt: skip
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        if not x.is_floating_point() or (
            weight is not None and autocast_dtype(weight) != autocast_dtype(x)
        ):
            wanted = "a float type" if weight is None else f"{weight.dtype}, as the weights"
            fail(DtypeError, name, f"{x.dtype}", wanted, "cast the tokens, or the layer")

    def _need_context(self, x: Tensor, context: Tensor) -> None:
        if not self.can.cross:
            self.cannot("context", "a tensor", "look at a context", "pass x alone")
        if self.causal:
            fail(
                RuleError, "context", "a tensor, for a causal layer", "no context",
                "make the layer with causal=False to look at a context",
            )  # fmt: skip
        self._need_tokens("context", context, self.context_dim)
        if context.shape[0] != x.shape[0]:
            fail(
                ShapeError, "context", f"batch {context.shape[0]}", f"batch {x.shape[0]}, as x",
                "expand the smaller one",
            )  # fmt: skip

    def _need_memory(self, x: Tensor, memory: object) -> None:
        if not isinstance(memory, LayerMemory):
            fail(RuleError, "memory", shape_of(memory), "a LayerMemory", "pass layer.memory()")
        if not memory.serves(self.describe(), self):
            fail(
                RuleError, "memory", f"one of {memory.of}, another layer",
                f"one of {self.describe()}",
                "give each layer the memory it made",
            )  # fmt: skip
        if memory.batch is None:
            memory.batch = x.shape[0]
        if memory.batch != x.shape[0]:
            fail(
                ShapeError, "x", f"batch {x.shape[0]}",
                f"batch {memory.batch}, as the memory holds",
                "start a new memory, or memory.reorder(rows) first",
            )  # fmt: skip

    def _need_documents(
        self, crosses: bool, of_context: Tensor | None, memory: LayerMemory | None
    ) -> None:
        if not self.can.documents:
            self.cannot("documents", "ids", "keep documents apart", "pass one document a row")
        if memory is not None:
            fail(
                RuleError, "documents", "ids with a memory", "one of the two",
                "decode one document in each row of the batch",
            )  # fmt: skip
        if crosses and of_context is None:
            fail(
                RuleError, "context_documents", "None", "ids [b, m], beside documents",
                "say which document each token of the context belongs to",
            )  # fmt: skip


def with_keys(memory: LayerMemory, keys: Any) -> LayerMemory:
    """Return a memory that keeps keys as a user asks."""
    memory.keys = None if keys is None else key_maker(keys)
    return memory


def _need_rows(name: str, x: Tensor | None, like: Tensor, kinds: tuple[torch.dtype, ...]) -> None:
    if x is None:
        return
    shape = [like.shape[0], like.shape[1]]
    if not isinstance(x, Tensor) or list(x.shape) != shape:
        fail(ShapeError, name, shape_of(x), f"a tensor {shape}", "give one entry for each token")
    if x.dtype not in kinds:
        said = " or ".join(str(kind) for kind in kinds)
        fail(DtypeError, name, f"{x.dtype}", said, f"cast it to {kinds[0]}")


def _positions(
    x: Tensor, positions: Tensor | None, documents: Tensor | None, offset: int
) -> Tensor:
    n = x.shape[1]
    if positions is None:
        places = torch.arange(offset, offset + n, device=x.device)
        if documents is None:
            return places
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return places - torch.where(first, places, 0).cummax(1).values
    shapes = ([n], [x.shape[0], n], [1, n])
    if not isinstance(positions, Tensor) or list(positions.shape) not in shapes:
        fail(
            ShapeError, "positions", shape_of(positions), f"[{n}] or [{x.shape[0]}, {n}]",
            "say where each token of x stands",
        )  # fmt: skip
    if positions.is_floating_point() or positions.dtype == torch.bool:
        fail(DtypeError, "positions", f"{positions.dtype}", "integers", "pass torch.arange(...)")
    return positions


def need_size(name: str, x: object, least: int = 1) -> None:
    """Raise unless x is a whole number of at least `least`."""
    if not isinstance(x, int) or isinstance(x, bool) or x < least:
        fail(
            ValueRangeError, name, repr(x), f"a whole number of at least {least}",
            "pass the size as an int",
        )  # fmt: skip


def need_divisor(name: str, x: int, of: str, whole: int) -> None:
    """Raise unless x divides the whole."""
    if whole % x:
        fail(
            ShapeError, name, x, f"a divisor of the {whole} {of}",
            f"choose one of {[y for y in range(1, whole + 1) if whole % y == 0]}",
        )  # fmt: skip


def need_share(name: str, x: object) -> None:
    """Raise unless x is a number from 0 up to 1, 1 left out."""
    if not isinstance(x, int | float) or not 0 <= x < 1:
        fail(ValueRangeError, name, repr(x), "a share from 0 up to 1", "leave it at 0")
