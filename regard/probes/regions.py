"""Maps of the tokens of a prompt over the patches of an image: by step, by site, and on average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from regard.core.errors import RuleError, ValueRangeError, fail, nearest, need
from regard.models.site import Site

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class WordMaps:
    """Maps of text tokens over the patches of one image, by step and by site.

    `found[step, site]` is [tokens, rows, columns] at the grid of that site; `map()` averages over
    steps and layers at `grid`, the largest one. Weights are those of one image query each, so they
    do not depend on how fine a grid is.

    >>> site = Site(0, "cross", "attn2", 2, 2)
    >>> maps = WordMaps(("a", "fox"), {(0, site): torch.tensor([[[0.9, 0.2]], [[0.1, 0.8]]])})
    >>> maps.grid, maps.words_at(0, 1)[0][0]
    ((1, 2), 'fox')
    >>> maps.of("fox").tolist()
    [[0.10000000149011612, 0.800000011920929]]
    """

    words: tuple[str, ...]
    found: Mapping[tuple[int, Site], Tensor] = field(repr=False)
    branch: str | None = None

    @property
    def steps(self) -> list[int]:
        """The steps of denoising that were seen, in order."""
        return sorted({step for step, _ in self.found})

    @property
    def sites(self) -> list[Site]:
        """The places that attend to text, in the order in which the model runs them."""
        return list(dict.fromkeys(site for _, site in self.found))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the largest grid."""
        rows, columns = max((x.shape[1:] for x in self.found.values()), key=lambda s: s.numel())
        return int(rows), int(columns)

    def map(self, step: int | None = None, site: int | Site | None = None) -> Tensor:
        """Average maps [tokens, rows, columns] over what is not named, at the largest grid.

        `site` is a site, or the number of one in `sites`. Coarser maps are resized bilinearly.
        """
        if isinstance(site, int):
            if not 0 <= site < len(self.sites):
                fail(
                    ValueRangeError, "site", site, f"0 to {len(self.sites) - 1}",
                    "count the places in maps.sites from 0",
                )  # fmt: skip
            site = self.sites[site]
        some = [x for (s, at), x in self.found.items() if step in (None, s) and site in (None, at)]
        if not some:
            fail(
                RuleError, "step, site", f"{step}, {site}", f"a step among {self.steps}, "
                "and a site among maps.sites", "name what was seen",
            )  # fmt: skip
        return torch.stack([resized(x, self.grid) for x in some]).mean(0)

    def index(self, word: str | int) -> list[int]:
        """The tokens that spell a word: one, several that read the same, or a run of pieces."""
        if isinstance(word, int):
            if not -len(self.words) <= word < len(self.words):
                fail(
                    ValueRangeError, "word", word, f"a token among {len(self.words)}",
                    "count tokens from 0",
                )  # fmt: skip
            return [word % len(self.words)]
        plain = [w.strip().lower() for w in self.words]
        wanted = word.strip().lower()
        same = [t for t, w in enumerate(plain) if w == wanted]
        if same:
            return same
        for start in range(len(plain)):
            joined = ""
            for stop in range(start, len(plain)):
                joined += plain[stop]
                if joined == wanted and wanted:
                    return list(range(start, stop + 1))
                if not wanted.startswith(joined):
                    break
        return fail(
            RuleError, "word", repr(word), f"one of {', '.join(dict.fromkeys(self.words))}"[:300],
            nearest(wanted, plain, "name a word of the prompt, or its number"),
        )  # fmt: skip

    def of(
        self, word: str | int, step: int | None = None, site: int | Site | None = None
    ) -> Tensor:
        """Return the map of a word [rows, columns]: the sum over the tokens that spell it."""
        return self.map(step, site)[self.index(word)].sum(0)

    def words_at(
        self, row: int, column: int, step: int | None = None, site: int | Site | None = None
    ) -> list[tuple[str, float]]:
        """Return what a patch looks at: every token with its weight, the heaviest first."""
        weights = self.map(step, site)[:, row, column]
        order = weights.argsort(descending=True).tolist()
        return [(self.words[t], float(weights[t])) for t in order]

    def to_frame(self) -> pandas.DataFrame:
        """A pandas table: step, layer, module, token, word, and the mean weight of the patches."""
        pandas = need("pandas", "see", "makes tables of word maps")
        return pandas.DataFrame(
            [
                {"step": step, "layer": site.layer, "module": site.module, "token": t,
                 "word": self.words[t], "weight": weight}
                for (step, site), x in self.found.items()
                for t, weight in enumerate(x.flatten(1).mean(1).tolist())
            ]
        )  # fmt: skip

    def __repr__(self) -> str:
        rows, columns = self.grid
        return (
            f"WordMaps({len(self.words)} tokens over {rows} x {columns} patches, "
            f"{len(self.steps)} steps, {len(self.sites)} sites)"
        )


def resized(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize maps [tokens, rows, columns] to a grid, bilinearly; as they are where they fit.

    >>> resized(torch.ones(3, 2, 4), (4, 8)).shape
    torch.Size([3, 4, 8])
    """
    if tuple(x.shape[1:]) == tuple(grid):
        return x
    return interpolate(x[None], size=tuple(grid), mode="bilinear", align_corners=False)[0]
