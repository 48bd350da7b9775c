"""One head of what was seen: its scores, its map, and exact weights of any queries and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail
from regard.models.site import Site
from regard.probes.maps import Deep
from regard.views.channels import Channels
from regard.views.colors import levels, ramp

if TYPE_CHECKING:
    import numpy as np

# Weights that are handed out at once: 256 MiB.
MOST = 1 << 26
Chosen = int | slice | Sequence[int] | None


@dataclass(frozen=True)
class SeenHead:
    """One head: its scores, its role, its words, and its weights on demand.

    `deep` holds q [n, d], k [m, d] and lse [n], where the head was kept in full; `tiles` is the
    map of its largest weights, bytes on a log scale.
    """

    name: str
    site: Site
    head: int
    role: str
    scores: Mapping[str, float]
    words: Sequence[str] = field(default=(), repr=False)
    tiles: np.ndarray | None = field(default=None, repr=False)
    deep: Deep | None = field(default=None, repr=False)

    def weights(self, rows: Chosen = None, columns: Chosen = None) -> Tensor:
        """Return exact weights [rows, columns] of some queries on some keys, all unless named.

        They are computed from q, k and lse: no more than what is asked for is made.
        """
        deep = self.deep
        if deep is None or not deep.facts["exact"]:
            why = "a small map alone" if deep is None else "a rule that q, k and lse do not tell"
            fail(
                CapabilityError, "head", f"{self.name}, of which there is {why}",
                "a head that was kept in full",
                f"look with see(..., heads=[({self.site.layer}, {self.head})])" if deep is None
                else "run the model with output_attentions=True, or survey its calls",
            )  # fmt: skip
        i = _indices("rows", rows, deep.q.shape[0])
        j = _indices("columns", columns, deep.k.shape[0])
        if i.numel() * j.numel() > MOST:
            fail(
                ValueRangeError, "rows", f"{i.numel():,} x {j.numel():,} weights",
                f"at most {MOST:,} at once", "name rows and columns: weights(rows=slice(0, 512))",
            )  # fmt: skip
        facts = deep.facts
        scores = deep.q[i].float() @ deep.k[j].float().T * facts["scale"]
        if facts["softcap"]:
            scores = facts["softcap"] * torch.tanh(scores / facts["softcap"])
        found = torch.exp(scores - deep.lse[i][:, None])
        if facts["causal"]:
            found = found.masked_fill(j[None] > i[:, None] + facts["offset"], 0.0)
        return found

    def top_keys(self, query: int, count: int = 5) -> list[tuple[int, str, float]]:
        """Return the keys that a query looks at most: place, word, weight."""
        return self._top(self.weights(rows=query)[0], count)

    def top_queries(self, key: int, count: int = 5) -> list[tuple[int, str, float]]:
        """Return the queries that look at a key most: place, word, weight."""
        return self._top(self.weights(columns=key)[:, 0], count)

    def channels(self, query: int, keys: Chosen = None, count: int = 8) -> Channels:
        """Return what each channel adds to the scores of a query: BertViz' neuron view.

        `keys` names the keys, unless it is given those that the query looks at most.

            print(seen["L3H5"].channels(query=40))
        """
        weights = self.weights(rows=query)[0]  # raises where q and k do not tell them
        deep = self.deep
        assert deep is not None
        if keys is None:
            places = weights.topk(min(count, len(weights))).indices
        else:
            places = _indices("keys", keys, len(weights))
        at = query % deep.q.shape[0]
        named = [self.words[x] if x < len(self.words) else "" for x in (at, *places.tolist())]
        q = deep.q[at].float()
        return Channels(
            self.name, at, named[0], tuple(places.tolist()), tuple(named[1:]), q,
            deep.facts["scale"] * q * deep.k[places].float(), weights[places],
        )  # fmt: skip

    def _top(self, weights: Tensor, count: int) -> list[tuple[int, str, float]]:
        found = weights.topk(min(count, len(weights)))
        places = found.indices.tolist()
        words = [self.words[x] if x < len(self.words) else "" for x in places]
        return list(zip(places, words, found.values.tolist(), strict=True))

    def picture(self) -> np.ndarray | None:
        """Return the map as colors uint8 [rows, columns, 3]: what stands out is light."""
        return None if self.tiles is None else ramp(levels("adaptive", self.tiles)[self.tiles])

    def __str__(self) -> str:
        said = ", ".join(f"{name} {value:.2g}" for name, value in self.scores.items())
        return f"{self.name} ({self.role or 'no role'}): {said}"

    def _repr_html_(self) -> str:
        from regard.views.notebook import show_head

        return show_head(self)


def _indices(name: str, chosen: Chosen, size: int) -> Tensor:
    """Read which places are meant, as indices."""
    if chosen is None or isinstance(chosen, slice):
        return torch.arange(size)[slice(None) if chosen is None else chosen]
    some = [chosen] if isinstance(chosen, int) else list(chosen)
    for x in some:
        if isinstance(x, bool) or not isinstance(x, int) or not -size <= x < size:
            fail(
                RuleError, name, repr(x), f"places from 0 to {size - 1}",
                f"pass {name}=slice(0, 10)",
            )  # fmt: skip
    return torch.tensor([x % size for x in some])
