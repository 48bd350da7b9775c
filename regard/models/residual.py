"""What each part of a model adds to the residual stream and to the logits.

    final = embedding + sum over layers of (sum over heads + bias + the rest, which is the MLP)

A final norm with frozen scale is linear, so the logit of a token is a sum over parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail
from regard.core.partial import wide
from regard.core.result import Result
from regard.models.attach import attach, hook_of
from regard.models.projections import output_weights
from regard.models.site import Site
from regard.models.stage import Stage


def precise(x: Tensor) -> Tensor:
    """Return x without gradient, in float32 or wider."""
    return x.detach().to(wide(x.dtype))


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with the scale of one input frozen, which makes it linear; `bias` is added."""

    scale: Tensor  # [..., D]
    bias: Tensor
    centered: bool

    @classmethod
    def at(cls, norm: Callable[[Tensor], Tensor], x: Tensor) -> FrozenNorm:
        """Measure the map of any RMS or layer norm by running it."""
        y, bias = precise(norm(x)), precise(norm(torch.zeros_like(x)))
        centered = bool(torch.allclose(precise(norm(x + 3.0)), y, atol=1e-3, rtol=1e-3))
        # Mean 0 and mean square 1, so that the norm returns its gains.
        signs = torch.ones(x.shape[-1], device=x.device, dtype=x.dtype)
        signs[1::2] = -1.0
        signs = signs if x.shape[-1] % 2 == 0 or not centered else signs - signs.mean()
        gain = (precise(norm(1e3 * signs.expand_as(x))) - bias) / signs
        z = (x - x.mean(-1, keepdim=True) if centered else x) * gain
        size = ((y - bias) * z).sum(-1, keepdim=True) / (z * z).sum(-1, keepdim=True)
        return cls(gain * size, bias, centered)

    def __call__(self, part: Tensor) -> Tensor:
        """Apply the map to a part of the input [..., D]."""
        part = part - part.mean(-1, keepdim=True) if self.centered else part
        return part * self.scale

    def back(self, direction: Tensor) -> Tensor:
        """Map a direction of the output back to the input, by the transpose."""
        back = direction * self.scale
        return back - back.mean(-1, keepdim=True) if self.centered else back


@dataclass
class ResidualBlock:
    """A block of a model: its site, the block, and its other parts (the MLP)."""

    site: Site
    block: nn.Module
    rest: list[nn.Module]


class Stream(Stage):
    """Watch the residual stream of a causal language model during one forward.

    As a stage it records the heads' outputs; hooks on blocks, final norm and unembedding record the
    rest, for the first `limit` tokens.

        with Stream.of(model) as stream:
            model(ids)
        stream.heads[site]   # [b, h, n, D]
    """

    def __init__(self, limit: int = 512) -> None:
        super().__init__()
        self.limit, self.rows, self.precision = limit, 0, 0.0
        self.layers: list[ResidualBlock] = []
        self.outs: dict[Site, Tensor] = {}
        self.entered: dict[Site, Tensor] = {}
        self.left: dict[Site, Tensor] = {}
        self.rest_outputs: dict[Site, list[Tensor]] = {}
        self.written: dict[Site, tuple[Tensor, Tensor | None]] = {}
        self.final: Tensor | None = None
        self.norm: nn.Module | None = None
        self.head: nn.Module | None = None
        self._norms: dict[int, tuple[nn.Module, Tensor]] = {}
        self._handles: list[Any] = []
        self._attached: Any = None
        self._model: Any = None

    @classmethod
    def of(cls, model: nn.Module, limit: int = 512) -> Stream:
        """Watch a model in a `with`."""
        stream = cls(limit)
        stream._model = model
        return stream

    def __enter__(self) -> Self:
        self._attached = attach(self._model, self, check=False)
        return self

    def __exit__(self, *error: object) -> None:
        self._attached.detach()

    def begin(self, model: Any, sites: Any) -> None:
        """Hook blocks, norms and the unembedding."""
        self.head = unembedding_of(model)
        self.layers = layers_of(model, sites)
        for layer in self.layers:
            site = layer.site
            self.written[site] = output_weights(model, site)
            hook = layer.block.register_forward_hook(self._block(site), with_kwargs=True)
            self._handles.append(hook)
            for part in layer.rest:
                self._handles.append(part.register_forward_hook(self._rest(site)))
        norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
        self._handles += [m.register_forward_hook(self._norm) for m in norms]
        self._handles.append(self.head.register_forward_pre_hook(self._unembed))

    def end(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def after(self, call: Call, partial: Result) -> Result:
        """Record the heads' outputs."""
        self.rows, self.precision = call.n, torch.finfo(partial.out.dtype).eps
        self.outs[call.site] = partial.out[:, :, : self.limit].detach()
        return partial

    def _block(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            y = output[0] if isinstance(output, tuple) else output
            self.entered[site] = precise(x[:, : self.limit])
            self.left[site] = precise(y[:, : self.limit])

        return hook

    def _rest(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            # In a block that has the layers of its MLP itself, the last of them writes.
            if isinstance(y, Tensor) and y.shape[-1] == self.written[site][0].shape[2]:
                kept = y.unflatten(0, (-1, self.rows)) if y.dim() == 2 else y
                self.rest_outputs.setdefault(site, []).append(precise(kept[:, : self.limit]))

        return hook

    def _norm(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and args:
            self._norms[output.untyped_storage().data_ptr()] = (module, args[0])

    def _unembed(self, module: nn.Module, args: Any) -> None:
        x = args[0]
        # By storage: a model may unembed a slice of the norm's output.
        found = self._norms.get(x.untyped_storage().data_ptr())
        if found is None:
            fail(
                CapabilityError, "model", "an unembedding without a norm before it",
                "a final norm before the unembedding", "logits of this model are no sum of parts",
            )  # fmt: skip
        self.norm, final = found
        self.final = precise(final[:, : self.limit])
        self._norms = {}

    @property
    def embedding(self) -> Tensor:
        """The input of the first block [b, n, D]."""
        return self.entered[self.layers[0].site]

    def heads(self, site: Site) -> Tensor:
        """Return what each head of a site adds [b, h, n, D]."""
        weight, _ = self.written[site]
        return torch.einsum("bhne,hed->bhnd", self.outs[site].to(weight.dtype), weight)

    def bias(self, site: Site) -> Tensor:
        """Return the bias of the output layer of a site [D]."""
        weight, bias = self.written[site]
        return weight.new_zeros(weight.shape[2]) if bias is None else bias

    def rest(self, site: Site) -> Tensor:
        """Return what the block of a site adds besides its heads: its MLP [b, n, D]."""
        weight, _ = self.written[site]
        out = self.outs[site].to(weight.dtype)
        heads = torch.einsum("bhne,hed->bnd", out, weight) + self.bias(site)
        rest = self.left[site] - self.entered[site] - heads
        summed = sum(self.rest_outputs.get(site, []), torch.zeros_like(rest))
        # The tolerance is that of sums in the model's precision.
        room = max(1e-3, 8 * self.precision) * float(self.left[site].abs().max())
        if self.rest_outputs.get(site) and float((rest - summed).abs().max()) > room:
            fail(
                CapabilityError, "model",
                f"a block ({site.module.rpartition('.')[0]}) that does not add the outputs of its "
                "heads and MLP", "a residual stream that is a sum of outputs",
                "models that norm or scale a layer's output cannot be decomposed this way",
            )  # fmt: skip
        return rest

    def frozen(self, rows: Any = slice(None)) -> FrozenNorm:
        """Return the final norm with its scale frozen at some tokens."""
        if self.final is None or self.norm is None:
            fail(RuleError, "stream", "no forward", "one forward", "run the model inside the with")
        with torch.no_grad():
            return FrozenNorm.at(self.norm, self.final[:, rows])

    @property
    def unembedding(self) -> tuple[Tensor, Tensor | None]:
        """The unembedding W_U [V, D] and its bias [V]."""
        assert self.head is not None
        weight: Any = self.head.weight
        bias: Any = getattr(self.head, "bias", None)
        return precise(weight), None if bias is None else precise(bias)


def layers_of(model: nn.Module, sites: Any) -> list[ResidualBlock]:
    """Return the blocks of a stack, each with one self-attention, and its parts that compute."""
    found = []
    attends = {site.module for site in sites}
    for site in sites:
        if site.kind != "self":
            fail(
                CapabilityError, "model", f"{site.kind} attention in {site.module}",
                "a stack of self-attention", "pass a decoder-only model",
            )  # fmt: skip
        path = site.module.rpartition(".")[0]
        block = model.get_submodule(path)
        rest = [
            child for other, child in block.named_children()
            if f"{path}.{other}" not in attends and _computes(child)
        ]  # fmt: skip
        found.append(ResidualBlock(site, block, rest))
    return found


def _computes(module: nn.Module) -> bool:
    """Return whether a part of a block has parameters besides norms."""
    return any(
        "norm" not in type(m).__name__.lower()
        for m in module.modules()
        if next(m.parameters(recurse=False), None) is not None
    )


def embedding_of(model: Any) -> nn.Module:
    """Return the token embedding of a model."""
    make = getattr(model, "get_input_embeddings", None)
    table: Any = make() if callable(make) else getattr(model, "embedding", None)
    if not isinstance(getattr(table, "weight", None), Tensor) or table.weight.dim() != 2:
        fail(
            CapabilityError, "model", f"{type(model).__name__}, which embeds no tokens",
            "a language model", "pass a model of tokens, with its head",
        )  # fmt: skip
    found: nn.Module = table
    return found


def unembedding_of(model: Any) -> nn.Module:
    """Return the unembedding of a model."""
    make = getattr(model, "get_output_embeddings", None)
    found = make() if callable(make) else None
    if found is None:
        found = getattr(model, "lm_head", None) or getattr(model, "head", None)
    if not isinstance(found, nn.Module):
        fail(
            CapabilityError, "model", f"{type(model).__name__}, which has no unembedding",
            "a language model with get_output_embeddings()", "pass the model with its head",
        )  # fmt: skip
    return found


def watched(model: nn.Module, ids: Tensor, limit: int = 512) -> Stream:
    """Run a model once, and return its residual stream."""
    hook_of(model)
    stream = Stream.of(model, limit)
    with stream, torch.no_grad():
        model(ids[:, :limit].to(next(model.parameters()).device))
    return stream
