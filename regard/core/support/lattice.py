"""Neighbourhoods on a 1-D, 2-D or 3-D lattice of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.support.bands import need_count
from regard.core.support.base import Support
from regard.core.tilemap import Grid
from regard.core.value import value


def per_axis(name: str, x: int | bool | Sequence[int | bool], axes: int) -> tuple[int, ...]:
    """Return one number for each axis, repeating a single one."""
    if isinstance(x, int):
        return (x,) * axes
    if not isinstance(x, Sequence) or len(x) != axes or not all(isinstance(a, int) for a in x):
        fail(
            RuleError,
            name,
            shape_of(x),
            f"a whole number, or one for each of the {axes} axes",
            f"pass {name}={(1,) * axes}",
        )
    return tuple(x)


@value
class Neighborhood(Support):
    """A query attends to the `kernel` of keys around it on a lattice of shape `lattice`.

    Positions run over the lattice in row-major order. On each axis the window slides with the
    query, and stops at the edges so that every query attends to the same number of keys. `dilation`
    spaces the window out; `stride` lets that many neighbouring queries share the window of their
    middle one; on a `causal` axis the window ends at the query. (natten; generalised
    neighbourhood attention.)

    >>> Neighborhood(3, (5,)).matrix(5)[0, 0].int().tolist()[0]
    [1, 1, 1, 0, 0]
    >>> Neighborhood((3, 3), (8, 8)).matrix(64).sum(-1).unique()
    tensor([9])
    """

    kernel: tuple[int, ...]
    lattice: tuple[int, ...]
    dilation: tuple[int, ...] = 1  # type: ignore[assignment]  # one number stands for every axis
    stride: tuple[int, ...] = 1  # type: ignore[assignment]
    causal: tuple[bool, ...] = False  # type: ignore[assignment]

    def __post_init__(self) -> None:
        lattice = (self.lattice,) if isinstance(self.lattice, int) else self.lattice
        if not isinstance(lattice, Sequence) or not 1 <= len(lattice) <= 3:
            fail(
                RuleError,
                "lattice",
                shape_of(lattice),
                "1, 2 or 3 axes",
                "pass the lattice as (height, width)",
            )
        lattice = tuple(lattice)
        for size in lattice:
            need_count("lattice", size)
        object.__setattr__(self, "lattice", lattice)
        for name in ("kernel", "dilation", "stride"):
            whole = per_axis(name, getattr(self, name), len(lattice))
            for x in whole:
                need_count(name, x)
            object.__setattr__(self, name, whole)
        causal = tuple(bool(c) for c in per_axis("causal", self.causal, len(lattice)))
        object.__setattr__(self, "causal", causal)
        for size, k, d, s in zip(lattice, self.kernel, self.dilation, self.stride, strict=True):
            if k * d > size:
                fail(
                    ValueRangeError,
                    "kernel",
                    f"{k} with dilation {d}",
                    f"kernel x dilation within the axis of {size}",
                    "shrink one of them",
                )
            if s > k:
                fail(
                    ValueRangeError,
                    "stride",
                    s,
                    f"at most the kernel of {k}",
                    "queries that share a window must lie in it",
                )

    def check(self, n: int, m: int) -> None:
        """Positions must be those of the lattice."""
        if max(n, m) > prod(self.lattice):
            fail(
                ShapeError,
                "lattice",
                self.lattice,
                f"room for {max(n, m)} positions",
                "make the lattice the shape of the tokens",
            )

    def along(self, axis: int, x: Tensor, y: Tensor) -> Tensor:
        """Return for coordinates on one axis whether query x may attend to key y."""
        d = self.dilation[axis]
        first, last = self._window(axis, x)
        key = torch.div(y, d, rounding_mode="floor")
        return (key >= first) & (key <= last) & (y % d == x % d)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compare, axis by axis, the windows of the outermost queries with the outermost keys."""
        some = torch.ones(grid.shape[2:], dtype=torch.bool, device=grid.i.device)
        every = some.clone()
        for axis, (x, y) in enumerate(
            zip(self.coordinates(grid.i), self.coordinates(grid.j), strict=True)
        ):
            axis_some, axis_every = self._cover_along(axis, x, y)
            some, every = some & axis_some, every & axis_every
        return some, every

    def _cover_along(self, axis: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Answer for coordinates x [t_q, size] and y [t_k, size] on one axis."""
        d = self.dilation[axis]
        groups = x % d, y % d
        pure = [(g.amin(1) == g.amax(1)) for g in groups]
        pure_pair = pure[0][:, None] & pure[1]
        alike = pure_pair & (groups[0][:, :1] == groups[1][:, 0])
        # The window's first and last key grow with the query, so the outermost queries decide;
        # with mixed dilation groups, the widest of any group does.
        first, last = self._window(axis, x)
        place = torch.div(y, d, rounding_mode="floor")
        low, high = place.amin(1), place.amax(1)
        meets = (low <= last.amax(1, keepdim=True)) & (high >= first.amin(1, keepdim=True))
        within = (low >= first.amax(1, keepdim=True)) & (high <= last.amin(1, keepdim=True))
        return meets & (alike | ~pure_pair), within & alike

    def _window(self, axis: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and last key of queries x on one axis, within their dilation group."""
        size, k = self.lattice[axis], self.kernel[axis]
        d, s = self.dilation[axis], self.stride[axis]
        group, place = x % d, torch.div(x, d, rounding_mode="floor")
        end = torch.div(size - 1 - group, d, rounding_mode="floor")  # of this dilation group
        share = torch.div(place, s, rounding_mode="floor") * s
        if self.causal[axis]:
            leader = torch.minimum(share + s - 1, end)
            return (leader - k + 1).clamp(min=0), place
        leader = torch.minimum(share + s // 2, end)
        first = torch.minimum((leader - k // 2).clamp(min=0), end - k + 1)
        return first, first + k - 1

    def coordinates(self, position: Tensor) -> list[Tensor]:
        """Split positions into one coordinate for each axis."""
        found = []
        for size in reversed(self.lattice):
            found.append(position % size)
            position = torch.div(position, size, rounding_mode="floor")
        return found[::-1]

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what is near on every axis."""
        near = (i == i) & (j == j)
        for axis, (x, y) in enumerate(zip(self.coordinates(i), self.coordinates(j), strict=True)):
            near = near & self.along(axis, x, y)
        return near

    @property
    def _spread(self) -> bool:
        return len(self.lattice) > 1 or max(self.dilation) > 1

    def tile_size(self) -> tuple[int, int] | None:
        """Few keys at a time, where neighbors are not in a row."""
        return (64, 16) if self._spread else None

    def order(self, n: int, side: int, device: torch.device) -> Tensor | None:
        """Residues first, then boxes of about `side` tokens, where neighbors are not in a row."""
        if not self._spread:
            return None
        position = torch.arange(n, device=device)
        box = max(1, round(side ** (1 / len(self.lattice))))
        coordinates = self.coordinates(position)
        places = [
            torch.div(x, d, rounding_mode="floor")
            for x, d in zip(coordinates, self.dilation, strict=True)
        ]
        # Residues first, then boxes, then places within the box: each a digit of the sorting key.
        digits = [(x % d, d) for x, d in zip(coordinates, self.dilation, strict=True)]
        digits += [(x // box, -(-s // box)) for x, s in zip(places, self.lattice, strict=True)]
        digits += [(x % box, box) for x in places]
        key = torch.zeros_like(position)
        for digit, base in digits:
            key = key * base + digit
        return torch.argsort(key, stable=True)
