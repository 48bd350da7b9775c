"""Patching MLPs: what a block adds beside its heads, taken from another forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import ShapeError, fail
from regard.models.attach import hook_of
from regard.models.residual import layers_of


def mlps_of(model: nn.Module) -> list[nn.Module]:
    """Return the MLPs of a stack, in order: what its blocks hold beside attention and norms.

    >>> import regard
    >>> len(mlps_of(regard.model(["mha", "mha"], dim=16, heads=2, vocab=5)))
    2
    """
    return [part for layer in layers_of(model, hook_of(model)[1]) for part in layer.rest]


def recorded_mlps(model: nn.Module, inputs: Any) -> dict[nn.Module, Tensor]:
    """Run one forward and return what each MLP gave, [b, n, D]."""
    found: dict[nn.Module, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for part in mlps_of(model):
            handle = part.register_forward_hook(
                lambda module, args, output: found.__setitem__(module, output.detach())
            )
            stack.callback(handle.remove)
        model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return found


@contextmanager
def patched_mlps(
    values: Mapping[nn.Module, Tensor], tokens: Sequence[int] | None = None
) -> Iterator[None]:
    """Put recorded outputs [b, n, D] in place of some MLPs' own, at all tokens or at some.

    With `patching.Patched` for the heads, a block is that of the other input:

    >>> import regard, torch
    >>> model = regard.model(["mha"], dim=16, heads=2, vocab=5).eval()
    >>> ids = torch.randint(5, (1, 4))
    >>> with patched_mlps(recorded_mlps(model, ids)):
    ...     same = model(ids)
    >>> torch.equal(same, model(ids))
    True
    """

    def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        other = values[module]
        if other.shape != output.shape:
            fail(
                ShapeError, "values", f"an output of {list(other.shape)}",
                f"{list(output.shape)}, as in this forward", "take inputs of one length",
            )  # fmt: skip
        if tokens is None:
            return other.to(output.dtype)
        new = output.clone()
        new[:, list(tokens)] = other[:, list(tokens)].to(output.dtype)
        return new

    with ExitStack() as stack:
        for part in values:
            stack.callback(part.register_forward_hook(put).remove)
        yield


__all__ = ["mlps_of", "patched_mlps", "recorded_mlps"]
