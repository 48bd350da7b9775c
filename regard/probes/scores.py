"""Scores of a probe: a number for each head of each site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regard.core.errors import need
from regard.models.site import Site
from regard.probes.chance import Chance

if TYPE_CHECKING:
    import pandas


class Head(NamedTuple):
    """A head of a site, and its score."""

    site: Site
    head: int
    value: float
    tower: str = ""

    @property
    def name(self) -> str:
        """Layer and head, as people write them.

        >>> Head(Site(1, module="h.1.attn", heads=4, kv_heads=4), 3, 0.93).name
        'L1H3'
        """
        return head_name(self.site, self.head, self.tower)


def head_name(site: Site, head: int, tower: str = "") -> str:
    """Return which head it is: `L1H3`, with the kind of the site where it is not self-attention.

    Where a model has several towers, that of the site goes before: `vision.L1H3`.
    """
    said = {"layer": site.layer, "kind": site.kind, "module": site.module, "tower": tower}
    return name_of_head(said, head)


def name_of_head(site: Mapping[str, Any], head: int) -> str:
    """Name a head as `head_name` does, of a site as a run file describes it.

    >>> name_of_head({"layer": 1, "kind": "self", "module": "layers.1.attn"}, 3)
    'L1H3'
    """
    tower, kind = site.get("tower", ""), site["kind"]
    layer = site["module"] if site["layer"] is None else f"L{site['layer']}"
    shown = "" if kind == "self" else f"{kind[0].upper()}"
    return f"{tower}{'.' if tower else ''}{layer}{shown}H{head}"


def towers(sites: Iterable[Site]) -> dict[Site, str]:
    """Name the tower of each site, by its module, where two of one layer and kind would be alike.

    >>> eyes = Site(0, module="model.vision_tower.layers.0.attn", heads=2, kv_heads=2)
    >>> words = Site(0, module="model.language_model.layers.0.attn", heads=2, kv_heads=2)
    >>> list(towers([eyes, words]).values()), list(towers([words]).values())
    (['vision', 'language'], [''])
    """
    sites = list(sites)
    alike: dict[Any, list[str]] = {}
    for site in sites:
        alike.setdefault((site.layer, site.kind, site.index), []).append(site.module)
    if all(len(modules) == 1 for modules in alike.values()) or any(
        site.layer is None for site in sites
    ):
        return dict.fromkeys(sites, "")
    paths = [site.module.split(".") for site in sites]
    # The first part of the path in which the modules of the model differ.
    apart = next(
        (i for i in range(min(map(len, paths))) if len({path[i] for path in paths}) > 1), 0
    )
    return {site: _short(path[apart]) for site, path in zip(sites, paths, strict=True)}


def _short(part: str) -> str:
    for end in ("_tower", "_model", "_encoder"):
        part = part.removesuffix(end)
    return part


@dataclass(frozen=True)
class Scores:
    """Numbers of one probe, [heads] for each site, with what they mean.

    >>> site = Site(0, module="attn", heads=2, kv_heads=2)
    >>> scores = Scores("local", "local", {site: torch.tensor([0.25, 0.75])})
    >>> [(top.name, top.value) for top in scores.top(1)]
    [('L0H1', 0.75)]
    >>> scores.array().tolist()
    [[0.25, 0.75]]
    """

    name: str
    title: str
    values: dict[Site, Tensor] = field(repr=False)
    definition: str = ""
    source: str = ""
    low: float = 0.0
    high: float | None = 1.0
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    # The chance level at each site, and how many tokens were read.
    chance: dict[Site, Chance] = field(default_factory=dict, repr=False)
    tokens: int | None = None
    towers: dict[Site, str] = field(default_factory=dict, repr=False)

    def above(self, head: Head) -> float:
        """Return how far a head is above chance, 0 to 1; its score where there is no baseline."""
        found = self.chance.get(head.site)
        return head.value if found is None else found.above(head.value)

    def level(self) -> float | None:
        """Return the highest chance level of all sites; None without a baseline."""
        return max((x.level for x in self.chance.values()), default=None)

    def read_against(self) -> str:
        """Return the chance level and the number of tokens as text.

        >>> Scores("local", "local", {}, tokens=512).read_against()
        '512 tokens'
        """
        level = self.level()
        parts = [] if level is None else [f"chance {level:.2g}"]
        parts += [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        return ", ".join(parts)

    @property
    def sites(self) -> list[Site]:
        """The sites, in the order of the model."""
        return list(self.values)

    def array(self, sites: list[Site] | None = None) -> np.ndarray:
        """Return [sites, most heads], NaN where there is no such head."""
        sites = self.sites if sites is None else sites
        wide = max((len(x) for x in self.values.values()), default=0)
        made = np.full((len(sites), wide), np.nan, dtype=np.float32)
        for row, site in zip(made, sites, strict=True):
            if site in self.values:
                row[: len(self.values[site])] = self.values[site].float().cpu().numpy()
        return made

    def heads(self) -> list[Head]:
        """Return every head with its score."""
        return [
            Head(site, h, float(x), self.towers.get(site, ""))
            for site, values in self.values.items()
            for h, x in enumerate(values.tolist())
        ]  # fmt: skip

    def top(self, count: int = 5) -> list[Head]:
        """Return the heads with the largest scores; those without one (NaN) are left out."""
        there = [head for head in self.heads() if head.value == head.value]
        return sorted(there, key=lambda head: -head.value)[:count]

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas table: layer, kind, module, head, score."""
        pandas = need("pandas", "see", "makes tables of scores")
        return pandas.DataFrame(
            [
                {"layer": x.site.layer, "kind": x.site.kind, "module": x.site.module,
                 "head": x.head, self.name: x.value}
                for x in self.heads()
            ]
        )  # fmt: skip

    def __getitem__(self, place: tuple[int, int]) -> float:
        """Score of (layer, head), where one site has that layer."""
        layer, head = place
        values = next(x for site, x in self.values.items() if site.layer == layer)
        return float(values[head])


class Tally:
    """Running means [heads] for each site, weighed by how many queries were counted."""

    def __init__(self) -> None:
        self.sums: dict[Site, Tensor] = {}
        self.counts: dict[Site, Tensor] = {}

    def add(self, site: Site, rows: Tensor, counted: Tensor | None = None) -> None:
        """Add rows [b, h, n]; `counted` bool [b, h or 1, n] says which count, all if None."""
        counted = torch.ones_like(rows, dtype=torch.bool) if counted is None else counted
        counted = counted.expand_as(rows)
        total = torch.where(counted, rows, 0.0).double().sum((0, 2)).cpu()
        many = counted.sum((0, 2)).cpu()
        self.sums[site] = self.sums.get(site, 0.0) + total
        self.counts[site] = self.counts.get(site, 0) + many

    def means(self) -> dict[Site, Tensor]:
        """Return the means; NaN where nothing was counted."""
        return {site: total / self.counts[site] for site, total in self.sums.items()}
