"""The way into Regard's own layers: each runs its calls through one method, which is replaced."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from regard.core.call import Call
from regard.layers.attention import Attention
from regard.models.engine import Engine
from regard.models.hook import Removal
from regard.models.site import Site, Sites


class OwnHook:
    """Hook into models made of `regard.layers`.

    >>> import regard
    >>> model = regard.model(["gqa", "retention"], dim=32, heads=4, kv_heads=2, vocab=10)
    >>> OwnHook().find(model)
    [Site(0, 'self', 'stack.blocks.0.mixer', 4/2 heads)]
    """

    name = "layers"

    def find(self, model: Any) -> list[Site]:
        """Name every layer with queries and keys; running states have none."""
        return [_site(name, module) for name, module in _layers(model)]

    def install(self, model: Any, sites: Sites, engine: Engine) -> Removal:
        """Send the calls of these layers through the engine; one that comes later is inside."""
        by_name = dict(_layers(model))
        held = [_hold(by_name[site.module], site, engine) for site in sites]

        def remove() -> None:
            for passage in held:
                passage.leave(engine)

        return remove


class _Passage:
    """What stands at a layer in place of its `attend`: its engines, the outermost first."""

    def __init__(self, layer: Attention, site: Site) -> None:
        self.layer, self.site, self.engines = layer, site, list[Engine]()
        self.engine = Engine()

    def join(self, engine: Engine) -> None:
        self.engines.append(engine)
        self._combine()

    def leave(self, engine: Engine) -> None:
        if engine in self.engines:
            self.engines.remove(engine)
            self._combine()
        if not self.engines:
            self.layer.__dict__.pop("attend", None)

    def _combine(self) -> None:
        self.engine = Engine([stage for one in self.engines for stage in one.stages])

    def __call__(self, call: Call) -> Tensor:
        return self.engine.run(call.replace(site=self.site))


def _hold(layer: Attention, site: Site, engine: Engine) -> _Passage:
    passage = layer.__dict__.get("attend")
    if not isinstance(passage, _Passage):
        passage = layer.__dict__["attend"] = _Passage(layer, site)
    passage.join(engine)
    return passage


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
