"""Caches of a model whose layers hold our memories: policies build them, their stage reads them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail, shape_of
from regard.core.keys import Dense
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.stores import Plain
from regard.models.forward import layer_of
from regard.models.site import Site
from regard.policies.kinds import Store

if TYPE_CHECKING:
    from regard.policies.shrinking import Shrinking


class Caches:
    """The owner of cache layers, which builds their memories.

    `layers` are those of the cache that was used last.
    """

    def __init__(self, model: Any, stage: Shrinking) -> None:
        self.stage = stage
        self.layers: list[Any] = []
        self._by_layer = {site.layer: site for site in stage.sites}
        self._takes = list(inspect.signature(model.forward).parameters)
        # Whether the user was warned that speculative tokens may differ.
        self._told = False

    @property
    def active(self) -> bool:
        """Whether the model is still shrunk: caches built here are refused afterwards."""
        return self.stage.active

    def site_of(self, layer: Any) -> Site:
        """Return the site of a layer of a cache."""
        return self._by_layer[layer.number]

    def new_memory(self, layer: Any) -> KeyMemory:
        """Build the memory of one layer of a cache."""
        site = self.site_of(layer)
        before = [one.memory for one in layer.cache[: layer.number]]
        made: list[tuple[str, KeyMemory]] = []
        for one in self.stage.policies:
            own = one.memory(site, before) if isinstance(one, Store) else None
            if own is not None:
                made.append((one.name, own))
        if len(made) > 1:
            need_one([name for name, _ in made], "memory")
        return made[0][1] if made else Kept(Plain)

    def new_layers(self) -> list[Any]:
        """Build the layers of a cache."""
        from regard.models.cache import KeyLayer

        made: list[Any] = []
        for number in range(len(self.stage.sites)):
            made.append(KeyLayer(self, number, made))
        return made

    def tokens_were_checked(self) -> None:
        """Warn once that speculative tokens, which are verified together, may differ.

        A cache cropped after several tokens at once is one of prompt lookup or an assistant.
        """
        lossy = [p.name for p in self.stage.policies if not p.budget.whole]
        if self._told or not lossy:
            return
        self._told = True
        warnings.warn(
            f"{self.stage.name}: several tokens were verified at once (speculative decoding). "
            f"{' and '.join(lossy)} may attend to other keys for several tokens than for one "
            "at a time, so the text may differ from that of generate() without it. "
            "Fix: generate without prompt_lookup_num_tokens and assistant_model to get that text.",
            stacklevel=2,
        )  # fmt: skip

    def arrive(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put our layers in the cache of a forward that begins, with its padding and positions."""
        given = {**dict(zip(self._takes, args, strict=False)), **kwargs} if args else kwargs
        cache, use = given.get("past_key_values"), given.get("use_cache")
        if cache is None and use is None:
            use = getattr(model.config, "use_cache", True)
        if cache is None and not use:
            if any(p.needs_cache for p in self.stage.policies):
                fail(
                    CapabilityError, "use_cache", "False", "True: the policy works on a cache",
                    "leave use_cache out",
                )  # fmt: skip
            return None
        if cache is None:
            cache = self._holding(None)
            kwargs = {**kwargs, "past_key_values": cache, "use_cache": True}
        elif not self._is_ours(cache):
            self._need_no_other(cache)
            cache = self._holding(cache)
        mask = given.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            fail(
                CapabilityError, "attention_mask", shape_of(mask),
                "a padding mask [b, tokens], or None",
                "detach for this call: a mask by pairs needs every key",
            )  # fmt: skip
        x: Any = given.get("inputs_embeds")
        n = (given["input_ids"] if x is None else x).shape[1]
        valid = None if mask is None or bool(mask[:, -n:].all()) else mask[:, -n:].bool()
        self.layers, places = list[Any](cache.layers), given.get("position_ids")
        for layer in self.layers:
            layer.valid, layer.places = valid, places
        return args, kwargs

    def _holding(self, cache: Any) -> Any:
        from regard.models.cache import holding_cache

        return holding_cache(cache, self)

    def _is_ours(self, cache: Any) -> bool:
        """Whether every layer of a cache is one of ours, as at every step."""
        layers: Any = getattr(cache, "layers", None)
        return bool(layers) and all(getattr(x, "owner", None) is self for x in layers)

    def _need_no_other(self, cache: Any) -> None:
        """Refuse a cache that another shrink has filled, attached or not."""
        from regard.models.cache import KeyLayer

        layers = getattr(cache, "layers", ())
        other = next((x.owner for x in layers if isinstance(x, KeyLayer)), None)
        if other is None or other is self:
            return
        if other.active:
            fail(
                CapabilityError, self.stage.name,
                f"a model with {other.stage.name} still attached", "a model shrunk once",
                "end that one first (its `with`, or detach()), or pass the policies of both to one "
                "shrink: regard.shrink(model, [first, second])",
            )  # fmt: skip
        fail(
            CapabilityError, "past_key_values",
            f"a cache of {other.stage.name}, which has been detached", "a new cache",
            "start the text again, or continue inside the `with` that it began in",
        )  # fmt: skip

    def layer_of(self, call: Call) -> Any:
        """Return the cache layer that took the keys of a call; None without a cache."""
        keys = call.keys
        found = layer_of(keys.k) if isinstance(keys, Dense) else None
        if found is None and self.layers and any(x.memory.seen for x in self.layers):
            last = self.layers[self._number(call.site)]
            if getattr(last, "unread", False):
                fail(
                    CapabilityError, self.stage.name, "keys that another stage has changed",
                    "the model's own keys", "attach the other stage after shrink, or leave it out",
                )  # fmt: skip
        if found is not None:
            found.unread = False
        return found if found is None or found.owner is self else None

    def _number(self, site: Any) -> int:
        return next((i for i, s in enumerate(self.stage.sites) if s == site), 0)


def need_one(names: Sequence[str], what: str) -> NoReturn:
    """Raise: several policies do the same thing in different ways."""
    fail(
        CapabilityError, "policies", f"{' and '.join(names)}, each with its own {what}",
        "policies that do different things",
        "combine one that evicts, one that stores and one for prompts",
    )  # fmt: skip
