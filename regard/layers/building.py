"""Make a whole model from the names of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from regard.core.errors import RuleError, fail, shape_of
from regard.layers.base import Layer
from regard.layers.positions import Learned, Sinusoidal
from regard.layers.registry import get, layer
from regard.layers.stack import Block, FeedForward, LanguageModel, Stack, need_sources


def model(
    layers: Sequence[str | Layer],
    *,
    dim: int,
    vocab: int,
    causal: bool = True,
    sources: Sequence[int] | None = None,
    absolute: nn.Module | str | None = None,
    longest: int = 2048,
    width: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
    checkpointing: bool = False,
    **settings: Any,
) -> LanguageModel:
    """Build a language model of layers given by name (or made already), with shared `settings`.

    `sources` lets layers read the keys of earlier ones (`[0, 0, 2, 2]`). `absolute` adds positions
    to the tokens: "sinusoidal", "learned" (up to `longest`) or a module of your own. A setting
    that some of the layers do not know goes to those that do.

    >>> import torch
    >>> hybrid = model(["mha", "retention"], dim=32, heads=4, vocab=50)
    >>> hybrid.generate(torch.tensor([[1, 2, 3]]), 4).shape
    torch.Size([1, 7])
    """
    if not layers:
        fail(RuleError, "layers", "none", "at least one layer", 'pass ["mha"] * 4, say')
    if sources is not None:
        need_sources(sources, len(layers))
    made = []
    known: set[str] = set()
    for i, one in enumerate(layers):
        if isinstance(one, Layer):
            made.append(one)
            continue
        if not isinstance(one, str):
            fail(RuleError, "layers", shape_of(one), "names or Layers", 'pass "mha", say')
        own = _known(one, settings)
        known |= set(own)
        if sources is not None and sources[i] != i:
            own["owns_keys"] = False
        made.append(layer(one, dim, causal=causal, **own))
    unknown = set(settings) - known
    if unknown and any(isinstance(one, str) for one in layers):
        fail(
            RuleError, "settings", sorted(unknown), "parameters that some layer has",
            "leave them out, or check their names",
        )  # fmt: skip
    if absolute == "sinusoidal":
        absolute = Sinusoidal(dim)
    elif absolute == "learned":
        absolute = Learned(dim, longest)
    elif isinstance(absolute, str):
        fail(RuleError, "absolute", repr(absolute), "'sinusoidal' or 'learned'", "or pass a module")
    blocks = [
        Block(one, feed_forward=FeedForward(dim, width), dropout=dropout) for one in made
    ]  # fmt: skip
    stack = Stack(blocks, sources=sources, checkpointing=checkpointing)
    return LanguageModel(stack, vocab, absolute=absolute, tied=tied)


def _known(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Keep the settings that the class of a layer, or a class it passes settings on to, names."""
    named: set[str] = set()
    for kind in get(name).__mro__:
        if "__init__" not in vars(kind) or kind in (nn.Module, object):
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        named |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {key: x for key, x in settings.items() if key in named}
