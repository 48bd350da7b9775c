"""The base of all layers: it checks its inputs and hands them to one method, `compute`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.autocast import autocast_dtype
from regard.core.errors import (
    CapabilityError,
    DtypeError,
    RuleError,
    ShapeError,
    fail,
    shape_of,
)
from regard.core.readable import can_be_read
from regard.layers.arguments import need_size
from regard.layers.inputs import Capabilities, LayerInput, need_rows, positions_of
from regard.memories.key_makers import key_maker
from regard.memories.layer import LayerMemory


class Layer(nn.Module):
    """A mixer of tokens: x [b, n, dim] to y [b, n, dim], with one way of calling it.

    A subclass declares what it `can` do and defines `compute(input)`. `causal` is fixed when the
    layer is built; a layer with `context_dim`, or one that is not causal, accepts a context.
    """

    can: ClassVar[Capabilities] = Capabilities()
    # Arguments of a small layer for tests, and how many tokens to test it with.
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4}
    tiny_tokens: ClassVar[int] = 24

    def __init__(self, dim: int, *, causal: bool = False, context_dim: int | None = None) -> None:
        super().__init__()
        self._need_compute()
        need_size("dim", dim)
        if context_dim is not None:
            need_size("context_dim", context_dim)
            if not self.can.cross:
                self.cannot("context_dim", context_dim, "attend to a context", "leave it out")
        if causal and not self.can.causal:
            self.cannot("causal", True, "be causal", "pass causal=False")
        if not causal and context_dim is None and not self.can.bidirectional:
            self.cannot("causal", False, "attend to later tokens", "pass causal=True")
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
        """Raise if `settings` hold one that this kind of layer sets itself."""
        for name in names:
            if settings.get(name) is not None:
                cls.cannot(name, settings[name], f"take {name}: it sets that", f"drop {name}")

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
        `layer.memory()`, continues from earlier tokens. The content of padded tokens never
        matters, NaN included. Under autocast the output has autocast's dtype, as that of
        `nn.Linear` has.
        """
        self._need_tokens("x", x, self.dim)
        if not torch.compiler.is_compiling() and not can_be_read(x):
            self._need_contents(x)
        begun = isinstance(memory, LayerMemory) and memory.seen > 0
        if context is None and self.crosses and not begun:
            fail(
                ShapeError, "context", "None", f"a tensor [b, m, {self.context_dim}]",
                "pass the context that this layer attends to",
            )  # fmt: skip
        if context is not None:
            self._need_context(x, context)
        if memory is not None:
            self._need_memory(x, memory)
        crosses = self._crossing(context, memory)
        seen = x if context is None else context
        need_rows("padding", padding, seen, (torch.bool,))
        need_rows("documents", documents, x, (torch.long, torch.int))
        need_rows("context_documents", context_documents, seen, (torch.long, torch.int))
        if padding is not None and not self.can.padding:
            self.cannot("padding", "a mask", "mask padding out", "pass tokens without padding")
        if padding is not None and not self.can.left_padding and not bool(padding[:, 0].all()):
            self.cannot("padding", "tokens that begin after it", "begin later", "pad at the end")
        if documents is not None:
            self._need_documents(crosses, context_documents, memory)
        if padding is not None and (context is not None or not crosses):
            # The content of padding, NaN included, reaches neither outputs nor gradients.
            real = seen.masked_fill(~padding[..., None], 0)
            x, seen = real if x is seen else x, real
        offset = 0 if memory is None or crosses else memory.seen
        where = positions_of(x, positions, documents, offset)
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
                RuleError, "memory", "a memory for a bidirectional layer", "a causal layer",
                "build the layer with causal=True, or pass a context",
            )  # fmt: skip
        return crosses

    def memory(self, keys: Any = None) -> LayerMemory:
        """Build an empty memory to decode with; a layer of self-attention must be causal.

        `keys` names the memory of keys, if not the layer's own: a name ("int4", "ring", "paged",
        ...), a class of `regard.memories`, or a function that builds one for the layer's rule.
        """
        if not self.can.decode:
            self.cannot("memory", "asked for", "decode token by token", "run it on whole sequences")
        if not self.causal and not self.crosses and not self.can.cross:
            fail(
                RuleError, "memory", "a memory for a bidirectional layer", "a causal layer",
                "build the layer with causal=True",
            )  # fmt: skip
        return with_keys(LayerMemory(self.describe(), self), keys)

    def describe(self) -> str:
        """Describe the layer in one line: its class and its sizes."""
        return f"{type(self).__name__}({self.dim}{', causal' if self.causal else ''})"

    def _need_compute(self) -> None:
        """Raise unless the class or a base of it defines `compute`."""
        kind = type(self)
        if kind.compute is not Layer.compute:
            return
        steps = [
            x for x in ("queries", "keys", "look", "mix", "features", "rates") if hasattr(kind, x)
        ]
        scans = "features" in steps or "rates" in steps
        base = "regard.layers.Recurrent" if scans else "regard.layers.Attention"
        fail(
            CapabilityError, "compute",
            f"{kind.__name__} without one" + (f", though with {', '.join(steps)}" if steps else ""),
            "a method compute(input) that returns y [b, n, dim]",
            f"derive from {base}, which calls these steps" if steps
            else "write compute, or derive from regard.layers.Attention",
        )  # fmt: skip

    def _need_contents(self, x: Tensor) -> None:
        """Raise if this kind of layer must read the values of tensors, and they have none."""
        if x.device.type == "meta" and not self.can.meta:
            self.cannot("x", "a tensor on meta", "run without data", "run it on a real device")
        if x.device.type != "meta" and not self.can.vmap:
            self.cannot(
                "x", "a tensor that cannot be read", "run under vmap or in a captured graph",
                "run it on the whole batch",
            )  # fmt: skip

    def _need_tokens(self, name: str, x: object, dim: int) -> None:
        if not isinstance(x, Tensor) or x.dim() != 3:
            fail(ShapeError, name, shape_of(x), f"a tensor [b, n, {dim}]", "add the batch axis")
        if x.shape[2] != dim:
            fail(
                ShapeError, name, f"{list(x.shape)}", f"[b, n, {dim}]",
                f"build the layer with {x.shape[2]} channels, or project to {dim}",
            )  # fmt: skip
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        if not x.is_floating_point() or (
            weight is not None and autocast_dtype(weight) != autocast_dtype(x)
        ):
            wanted = "a float type" if weight is None else f"{weight.dtype}, as the weights"
            fail(DtypeError, name, f"{x.dtype}", wanted, "cast the tokens, or the layer")

    def _need_context(self, x: Tensor, context: Tensor) -> None:
        if not self.can.cross:
            self.cannot("context", "a tensor", "attend to a context", "pass x alone")
        if self.causal:
            fail(
                RuleError, "context", "a tensor, for a causal layer", "no context",
                "build the layer with causal=False to attend to a context",
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
                "pass each layer the memory that it built",
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
    """Return a memory that keeps keys in the kind of memory that a user asks for."""
    memory.keys = None if keys is None else key_maker(keys)
    return memory
