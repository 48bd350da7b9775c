"""Where a control acts: a choice of sites, as a value that can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from regard.core.errors import RuleError, fail, nearest
from regard.core.value import Value, value
from regard.models.site import Place, Site

FIELDS = ("layers", "heads", "kinds", "names", "steps", "branches")


def _tuple(x: Any) -> Any:
    if x is None or isinstance(x, tuple):
        return x
    if isinstance(x, str | int):
        return (x,)
    return tuple(x) if isinstance(x, Iterable) else x


@value
class SiteChoice(Value):
    """Layers, heads, kinds and names of sites, steps, and branches of guidance; None means all.

    `heads` are numbers, the same in every layer, or pairs (layer, head). `branches` names blocks of
    the batch ("conditional"), where the model runs with guidance.

    >>> SiteChoice.of({"layers": range(2), "heads": [(0, 3), (1, 5)]}).heads
    ((0, 3), (1, 5))
    >>> SiteChoice.of("cross").kinds
    ('cross',)
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[Any, ...] | None = None
    kinds: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    steps: tuple[int, ...] | None = None
    branches: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in FIELDS:
            object.__setattr__(self, name, _tuple(getattr(self, name)))
        if self.heads is not None:
            heads = tuple(tuple(x) if isinstance(x, list | tuple) else x for x in self.heads)
            if len({isinstance(x, tuple) for x in heads}) > 1 or any(
                isinstance(x, tuple) and len(x) != 2 for x in heads
            ):
                fail(
                    RuleError, "where['heads']", repr(self.heads),
                    "numbers of heads, or pairs (layer, head)", "pass heads=[(2, 0), (3, 5)]",
                )  # fmt: skip
            object.__setattr__(self, "heads", heads)
        _ = self.place  # which checks the rest

    @staticmethod
    def of(x: Any) -> SiteChoice:
        """Convert a choice: None, a layer, layers, a kind, a glob of names, or a dict of these."""
        if isinstance(x, SiteChoice):
            return x
        if isinstance(x, Mapping):
            for name in x:
                if name not in FIELDS:
                    fail(
                        RuleError, "where", repr(name), f"one of {', '.join(FIELDS)}",
                        nearest(name, FIELDS, "choose by these"),
                    )  # fmt: skip
            return SiteChoice(**x)
        if callable(x) and not isinstance(x, Place):
            fail(
                RuleError, "where", "a function", "layers, heads, kinds or names, which can be "
                "saved", "name the sites: where={'layers': [3], 'heads': [0]}",
            )  # fmt: skip
        place = Place.of(x)

        def ordered(found: frozenset[Any] | None) -> tuple[Any, ...] | None:
            return None if found is None else tuple(sorted(found))

        return SiteChoice(
            ordered(place.layers), place.heads, ordered(place.kinds), place.names,
            ordered(place.steps),
        )  # fmt: skip

    @property
    def place(self) -> Place:
        """Return it as a choice of a Stage; heads of single layers are chosen at each call."""
        layers, heads = self.layers, self.heads
        if heads is not None and heads and isinstance(heads[0], tuple):
            own = tuple(dict.fromkeys(layer for layer, _ in heads))
            layers = own if layers is None else tuple(x for x in own if x in layers)
            heads = None
        given = {"layers": layers, "heads": heads, "kinds": self.kinds, "names": self.names,
                 "steps": self.steps}  # fmt: skip
        return Place.of({name: x for name, x in given.items() if x is not None})

    def heads_at(self, site: Site | None) -> tuple[int, ...] | None:
        """Return the chosen heads at a site; None for all."""
        if self.heads is None or not self.heads or not isinstance(self.heads[0], tuple):
            return self.heads
        return tuple(head for layer, head in self.heads if site is None or layer == site.layer)


def of_other_encoders(model: Any, sites: Iterable[Site]) -> frozenset[str]:
    """Return the modules of sites that read pictures or sound for a model of language.

    The tokens of the prompt are not theirs, and their layers are counted separately. They are the
    sites without causal attention, where others are causal, in a model with a text config.

    >>> of_other_encoders(None, [Site(0, causal=True)])
    frozenset()
    """
    found = list(sites)
    if getattr(getattr(model, "config", None), "text_config", None) is None:
        return frozenset()
    if not any(x.causal for x in found):
        return frozenset()
    return frozenset(x.module for x in found if x.kind == "self" and x.causal is False)
