"""Where a model attends: sites, and how to select them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from regard.core.errors import RegardError, RuleError, fail, shape_of
from regard.core.html_table import html_table, padded_rows
from regard.models.forward import Forward

KINDS = ("self", "cross", "joint")
CHOICES = ("layers", "kinds", "names", "heads", "steps")


class SiteError(RegardError, LookupError):
    """A choice of sites selects none."""


@dataclass(frozen=True)
class Site:
    """One place where a model attends; `module` is its path in the model.

    `index` numbers the calls of a module that attends more than once. `modality` is the order of
    tokens of two kinds ("text-image").

    >>> Site(layer=7, kind="self", module="model.layers.7.self_attn", heads=32, kv_heads=8)
    Site(7, 'self', 'model.layers.7.self_attn', 32/8 heads)
    """

    layer: int | None
    kind: str = "self"
    module: str = ""
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    causal: bool | None = None
    modality: str | None = None
    grid: tuple[int, ...] | None = None
    index: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            fail(RuleError, "kind", repr(self.kind), f"one of {KINDS}", "name the kind of site")

    def __hash__(self) -> int:
        # Sites are looked up at every call; module and index identify them.
        return hash((self.module, self.index))

    def __repr__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads"
        call = f", call {self.index}" if self.index else ""
        return f"Site({self.layer}, {self.kind!r}, {self.module!r}{call}, {heads})"

    def span(self, modality: str, n: int, now: Forward | None = None) -> slice | None:
        """Return where the tokens of a modality are among `n`; None where that is unknown.

        `now` is the running forward, which has the number of image tokens.

        >>> Site(0, "joint", modality="text-image").span("text", 10, Forward(0, grid=(2, 3)))
        slice(0, 4, None)
        """
        order = (self.modality or "").split("-")
        if modality not in order:
            return None
        if len(order) == 1:
            return slice(0, n)
        images = None if now is None else now.images
        if images is None or images > n:
            return None
        first = images if order[0] == "image" else n - images
        return slice(0, first) if order[0] == modality else slice(first, n)


@dataclass(frozen=True)
class Place:
    """A choice of sites, heads and steps; None means all."""

    layers: frozenset[int] | None = None
    kinds: frozenset[str] | None = None
    names: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    steps: frozenset[int] | None = None
    test: Callable[[Site], bool] | None = None

    @staticmethod
    def of(where: Any) -> Place:
        """Parse a choice: None, a layer, layers, a glob, a function of the site, or a dict.

        >>> Place.of({"layers": range(2), "heads": 3}).heads
        (3,)
        """
        if where is None:
            return Place()
        if isinstance(where, Place):
            return where
        if callable(where):
            return Place(test=where)
        if isinstance(where, str):
            return Place(kinds=frozenset([where])) if where in KINDS else Place(names=(where,))
        if isinstance(where, Mapping):
            unknown = set(where) - set(CHOICES)
            if unknown:
                fail(
                    RuleError,
                    "where",
                    f"keys {sorted(map(str, unknown))}",
                    f"keys among {CHOICES}",
                    "choose by layers, kinds, names, heads or steps",
                )
            kinds = _words("kinds", where.get("kinds"))
            if kinds is not None and set(kinds) - set(KINDS):
                fail(RuleError, "where['kinds']", str(kinds), f"some of {KINDS}", "name kinds")
            heads = _numbers("heads", where.get("heads"))
            layers, steps = (_numbers(x, where.get(x)) for x in ("layers", "steps"))
            return Place(
                None if layers is None else frozenset(layers),
                None if kinds is None else frozenset(kinds),
                _words("names", where.get("names")),
                heads,
                None if steps is None else frozenset(steps),
            )
        return Place(layers=frozenset(_numbers("layers", where) or ()))

    def __contains__(self, site: Site) -> bool:
        return (
            (self.layers is None or site.layer in self.layers)
            and (self.kinds is None or site.kind in self.kinds)
            and (self.names is None or any(fnmatchcase(site.module, x) for x in self.names))
            and (self.test is None or bool(self.test(site)))
        )


def _numbers(name: str, x: Any) -> tuple[int, ...] | None:
    if x is None:
        return None
    many = (x,) if isinstance(x, int) else x
    if not isinstance(many, Iterable) or isinstance(many, str):
        fail(RuleError, f"where[{name!r}]", shape_of(x), "whole numbers", f"pass {name}=[0, 1]")
    many = tuple(many)
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in many):
        fail(RuleError, f"where[{name!r}]", str(many), "whole numbers from 0", "count from 0")
    return many


def _words(name: str, x: Any) -> tuple[str, ...] | None:
    if x is None:
        return None
    words = (x,) if isinstance(x, str) else tuple(x) if isinstance(x, Iterable) else (None,)
    if any(not isinstance(w, str) for w in words):
        fail(RuleError, f"where[{name!r}]", shape_of(x), "one or more names", "pass strings")
    return words


class Sites(list[Site]):
    """The sites of a model, in order; prints as a table.

    >>> sites = Sites([Site(0, "self", "a.0", 4, 2, 8), Site(1, "self", "a.1", 4, 2, 8)])
    >>> len(sites.select(where=1)), sites.select(where="a.*")[0].module
    (1, 'a.0')
    """

    def select(self, where: Any = None) -> Sites:
        """Return the sites that `where` selects; raise `SiteError` if it selects none."""
        place = Place.of(where)
        found = Sites(site for site in self if site in place)
        if not found and where is not None:
            names = ", ".join(site.module for site in self[:4])
            fail(
                SiteError,
                "where",
                f"{where!r}, which selects no site",
                f"sites among layers {sorted({s.layer for s in self if s.layer is not None})}, "
                f"kinds {sorted({s.kind for s in self})}, modules {names}, ...",
                "print attach(model).sites to see them all",
            )
        for head in place.heads or ():
            small = next((s for s in found if s.heads is not None and head >= s.heads), None)
            if small is not None:
                fail(
                    SiteError,
                    "where['heads']",
                    head,
                    f"heads 0 to {(small.heads or 1) - 1} at {small.module}",
                    "count heads from 0",
                )
        return found

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row of strings for each site, after a row of headings.

        >>> Sites([Site(0, module="a", modality="image", grid=(4, 6))]).rows()[1][-2:]
        ('image', '4 x 6')
        """
        columns = ["layer", "kind", "module", "heads", "kv_heads", "head_size", "causal"]
        columns += [x for x in ("modality", "grid") if any(getattr(s, x) is not None for s in self)]
        head = tuple(x.replace("_", " ") for x in columns)
        return [head, *(tuple(_cell(getattr(s, x)) for x in columns) for s in self)]

    def table(self) -> Any:
        """Build a rich table (needs rich)."""
        from rich.table import Table

        head, *body = self.rows()
        made = Table(*head)
        for row in body:
            made.add_row(*row)
        return made

    def __rich__(self) -> Any:
        return self.table()

    def _repr_html_(self) -> str:
        head, *rows = self.rows()
        return html_table(f"{len(self)} sites", head, rows)

    def __str__(self) -> str:
        return "\n".join(padded_rows(self.rows()))


def _cell(x: Any) -> str:
    return "-" if x is None else " x ".join(map(str, x)) if isinstance(x, tuple) else str(x)
