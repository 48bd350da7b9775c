"""Build a whole model from the names of its layers."""

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
    causal: bool | None = None,
    sources: Sequence[int] | None = None,
    absolute: nn.Module | str | None = None,
    longest: int | None = None,
    width: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
    checkpointing: bool = False,
    **settings: Any,
) -> LanguageModel:
    """Build a language model of layers given by name (or already built), with shared `settings`.

    `sources` lets layers read the keys of earlier ones (`[0, 0, 2, 2]`). `absolute` adds positions
    to the tokens: "sinusoidal", "learned" (up to `longest`, 2048 unless given) or a module of your
    own. Layers given by name are causal unless `causal=False`. A setting goes to the layers by
    name that accept it, and is refused where none does.

    >>> import torch
    >>> hybrid = model(["mha", "retention"], dim=32, heads=4, vocab=50)
    >>> hybrid.generate(torch.tensor([[1, 2, 3]]), 4).shape
    torch.Size([1, 7])
    """
    if not layers:
        fail(RuleError, "layers", "none", "at least one layer", 'pass ["mha"] * 4, say')
    if sources is not None:
        need_sources(sources, len(layers))
    made: list[Layer] = []
    known: set[str] = set()
    for i, one in enumerate(layers):
        if isinstance(one, Layer):
            need_alike(one, i, dim, causal)
            made.append(one)
            continue
        if not isinstance(one, str):
            fail(RuleError, "layers", shape_of(one), "names or Layers", 'pass "mha", say')
        own = _known(one, settings)
        known |= set(own)
        if sources is not None and sources[i] != i:
            own["owns_keys"] = False
        made.append(layer(one, dim, causal=causal is not False, **own))
    unknown = set(settings) - known
    if unknown:
        fail(
            RuleError, "settings", sorted(unknown), "parameters that some layer has, given by name",
            "leave them out, or check their names; layers that are already built take none",
        )  # fmt: skip
    if longest is not None and absolute != "learned":
        fail(
            RuleError, "longest", f"{longest}, with absolute={absolute!r}", 'absolute="learned"',
            "leave it out: only a learned table has a length",
        )  # fmt: skip
    if absolute == "sinusoidal":
        absolute = Sinusoidal(dim)
    elif absolute == "learned":
        absolute = Learned(dim, 2048 if longest is None else longest)
    elif isinstance(absolute, str):
        fail(RuleError, "absolute", repr(absolute), "'sinusoidal' or 'learned'", "or pass a module")
    blocks = [
        Block(one, feed_forward=FeedForward(dim, width), dropout=dropout) for one in made
    ]  # fmt: skip
    stack = Stack(blocks, sources=sources, checkpointing=checkpointing)
    return LanguageModel(stack, vocab, absolute=absolute, tied=tied)


def need_alike(layer: Layer, place: int, dim: int, causal: bool | None) -> None:
    """Raise unless a layer that is already built has the width and causality of the model."""
    if layer.dim != dim:
        fail(
            RuleError, f"layers[{place}]", f"{layer.dim} channels", f"dim={dim}, as the model",
            "build the layer with this dim",
        )  # fmt: skip
    if causal is not None and layer.causal != causal:
        fail(
            RuleError, "causal", f"{causal}, with layers[{place}] built with causal={layer.causal}",
            "the layer's own causal", "leave causal out, or build the layer again",
        )  # fmt: skip


def _known(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a layer's class, or a class it passes settings on to, accepts."""
    named: set[str] = set()
    for kind in get(name).__mro__:
        if "__init__" not in vars(kind) or kind in (nn.Module, object):
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        named |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {key: x for key, x in settings.items() if key in named}
