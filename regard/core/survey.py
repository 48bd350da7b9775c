"""What one pass over attention can report without keeping the matrix.

With weights w_ij of query i on key j (what the keys get; a sink's share is left out):

    lse_i        log of all weight before it is shared out       [b, h, n]
    entropy_i    -sum_j p_ij log p_ij, p = |w| shared out over the keys, in nats
    row_max_i    the largest |w_ij|, and row_max_key its key     [b, h, n]
    top          the largest weights and their keys              [b, h, n, top]
    received_j   sum_i |w_ij|, and seen: how many queries may attend to key j   [b, h, m]
    distance     mass by j - i: one by one up to `near`, the rest in octaves of past and future
    apart_i      sum_j |w_ij| |i - j|: how far away what it looks at stands    [b, h, n]
    sets         mass of each query on named sets of keys        [b, h, n, sets]
    sinks        mass on chosen keys, a mean over the queries that may attend to them   [b, h, len]
    tile_sum, tile_max   sum and largest |w| of each tile        [b, h, t_q, t_k]

`..._by_value` weighs |w_ij| with the length of value j. Signed weights count by their size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.errors import RuleError, ShapeError, fail, nearest

# What can be asked for, and the fields that answer it.
FIELDS: dict[str, tuple[str, ...]] = {
    "lse": ("lse",),
    "entropy": ("entropy",),
    "max": ("row_max", "row_max_key"),
    "top": ("top_weights", "top_keys"),
    "received": ("received", "seen"),
    "distance": ("distance_near", "distance_far"),
    "apart": ("apart",),
    "sets": ("sets",),
    "sinks": ("sinks",),
    "sink_share": ("sink_share",),
    "tiles": ("tile_sum", "tile_max"),
    "received_by_value": ("received_by_value",),
    "distance_by_value": ("distance_near_by_value", "distance_far_by_value"),
    "sets_by_value": ("sets_by_value",),
    "tiles_by_value": ("tile_sum_by_value", "tile_max_by_value"),
}
WANTS = tuple(FIELDS)

# How the fields of two surveys of later and later queries combine.
_PER_QUERY = {
    "lse", "entropy", "row_max", "row_max_key", "top_weights", "top_keys", "sets",
    "sets_by_value", "sink_share", "apart",
}  # fmt: skip
_PER_KEY = {"received", "seen", "received_by_value"}
_PER_TILE = {"tile_sum", "tile_max", "tile_sum_by_value", "tile_max_by_value"}


@dataclass(frozen=True)
class Survey:
    """The statistics that were requested, as tensors: `report.entropy`, `report.received`, ...

    Surveys of later queries over the same keys (and more) combine: `report.then(later)`.

    >>> import regard
    >>> q = torch.randn(1, 2, 8, 4)
    >>> report = regard.survey(q, q, q, regard.Causal(), want=("entropy", "received"))
    >>> report
    Survey(8 queries, 8 keys: entropy [1, 2, 8], received [1, 2, 8], seen [1, 2, 8])
    >>> bool(report.received.sum() - 2 * 8 < 1e-5)
    True
    """

    found: dict[str, Tensor] = field(repr=False)
    n: int
    m: int
    tile: int
    near: int
    names: tuple[str, ...] = ()
    chosen: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Tensor:
        found = self.__dict__.get("found", {})
        if name in found:
            return found[name]  # type: ignore[no-any-return]
        wants = [want for want, names in FIELDS.items() if name in names]
        if wants:
            fail(
                RuleError, name, "a survey without it", f"want={wants[0]!r} in it",
                f"call survey(..., want=({wants[0]!r}, ...))",
            )  # fmt: skip
        raise AttributeError(name)

    @property
    def sinks(self) -> Tensor:
        """Mean mass on each chosen key over the queries that may attend to it, [b, h, len]."""
        keys = torch.tensor(self.chosen, device=self.received.device)
        return self.received[..., keys] / self.seen[..., keys].clamp(min=1)

    def named(self, name: str) -> Tensor:
        """Mass of each query on one of the named sets, [b, h, n]."""
        if name not in self.names:
            fail(RuleError, "name", repr(name), f"one of {self.names}", "name the set in `sets=`")
        return self.sets[..., self.names.index(name)]

    def then(self, later: Survey) -> Survey:
        """Join with a survey of later queries, which may have more keys; associative."""
        if set(self.found) != set(later.found) or (self.tile, self.near, self.names) != (
            later.tile, later.near, later.names,
        ):  # fmt: skip
            fail(
                RuleError, "later", f"a survey of {sorted(later.found)}", f"{sorted(self.found)}, "
                "with the same tile, near and sets", "ask both for the same",
            )  # fmt: skip
        if any(x in self.found for x in _PER_TILE) and self.n % self.tile:
            fail(
                ShapeError, "later", f"queries from {self.n} on", f"a multiple of {self.tile}, so "
                "that tiles join", "cut queries at whole tiles, or leave tiles out",
            )  # fmt: skip
        made = {x: _join(x, self.found[x], later.found[x]) for x in self.found}
        return replace(
            later, found=made, n=self.n + later.n, m=max(self.m, later.m), chosen=self.chosen
        )

    def summary(self) -> dict[str, Any]:
        """Return means over everything but heads, as plain numbers that JSON can hold."""
        said: dict[str, Any] = {"queries": self.n, "keys": self.m}
        for name, x in self.found.items():
            if x.is_floating_point() and x.dim() >= 3:
                finite = torch.where(x.isfinite(), x, 0.0)
                said[name] = finite.transpose(0, 1).flatten(1).mean(1).tolist()
        return said

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {list(x.shape)}" for name, x in self.found.items())
        return f"Survey({self.n} queries, {self.m} keys: {said})"


def _join(name: str, a: Tensor, b: Tensor) -> Tensor:
    if name in _PER_QUERY:
        return torch.cat([a, b], 2)
    if name in _PER_TILE:
        wide = max(a.shape[3], b.shape[3])
        return torch.cat([pad(x, (0, wide - x.shape[3])) for x in (a, b)], 2)
    if name in _PER_KEY:
        wide = max(a.shape[2], b.shape[2])
        return sum(pad(x, (0, wide - x.shape[2])) for x in (a, b))  # type: ignore[return-value]
    wide = max(a.shape[-1], b.shape[-1])  # mass by distance: more octaves with more keys
    return sum(pad(x, (0, wide - x.shape[-1])) for x in (a, b))  # type: ignore[return-value]


def need_wants(want: tuple[str, ...], has_value: bool, has_sets: bool, has_sinks: bool) -> None:
    """Raise unless each thing wanted exists and has what it needs."""
    for one in want:
        if one not in FIELDS:
            some = f"one of {', '.join(WANTS)}"
            fail(RuleError, "want", repr(one), some, nearest(one, WANTS, f"want {some}"))
        for needs, has, name in (
            (one.endswith("_by_value"), has_value, "v"),
            (one.startswith("sets"), has_sets, "sets"),
            (one == "sinks", has_sinks, "sinks"),
        ):
            if needs and not has:
                fail(RuleError, name, "None", f"{name} for {one!r}", f"pass {name}, or want less")


def octave(distance: Tensor) -> Tensor:
    """Number of the octave of a distance of at least 1: 0 for 1, 1 for 2 to 3, 2 for 4 to 7 ...

    >>> octave(torch.tensor([1, 2, 3, 4, 1023, 1024])).tolist()
    [0, 1, 1, 2, 9, 10]
    """
    return torch.frexp(distance.double()).exponent.long() - 1
