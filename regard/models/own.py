"""The hook into Regard's own layers, whose calls run through one method, which is wrapped."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from regard.core.call import Call
from regard.layers.attention import Attention
from regard.models.engine import Engine
from regard.models.hook import Held
from regard.models.removal import Removal
from regard.models.site import Site, Sites
from regard.models.wrap import Around, hold


class OwnHook:
    """Hook into models made of `regard.layers`.

    >>> import regard
    >>> model = regard.model(["gqa", "retention"], dim=32, heads=4, kv_heads=2, vocab=10)
    >>> OwnHook().find(model)
    [Site(0, 'self', 'stack.blocks.0.mixer', 4/2 heads)]
    """

    name = "layers"

    def find(self, model: Any) -> list[Site]:
        """Find every layer with queries and keys; recurrent layers have none."""
        return [_site(name, module) for name, module in _layers(model)]

    def install(self, model: Any, sites: Sites, engine: Engine, undo: Removal) -> None:
        """Run the calls of these layers through the engine; later engines are inside."""
        by_name = dict(_layers(model))
        for site in sites:
            hold(by_name[site.module], "attend", partial(_ServeLayers, site), engine, undo)


class _ServeLayers(Around):
    """Around a layer's `attend`: its calls go through the attached engines."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.held = Held(site)

    def changed(self) -> None:
        self.held = self.held.by(self.holders)

    def run(self, plain: Callable[..., Any], call: Call) -> Tensor:
        held = self.held
        return held.engine.run(call.replace(site=held.site))


def _layers(model: Any) -> list[tuple[str, Attention]]:
    if not isinstance(model, nn.Module):
        return []
    return [(name, m) for name, m in model.named_modules() if isinstance(m, Attention)]


def _site(name: str, layer: Attention) -> Site:
    numbers = re.findall(r"\d+", name)
    return Site(
        int(numbers[0]) if numbers else None,
        "cross" if layer.crosses else "self",
        name,
        layer.heads,
        layer.kv_heads,
        layer.head_dim,
        layer.causal,
    )


HOOK = OwnHook()
