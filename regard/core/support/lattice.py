"""Neighbourhoods on a 1-D, 2-D or 3-D lattice of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.support.bands import need_count
from regard.core.support.base import Support
from regard.core.value import value


def per_axis(name: str, x: int | bool | Sequence[int | bool], axes: int) -> tuple[int, ...]:
    """Give one number for each axis, repeating a single one."""
    if isinstance(x, int):
        return (x,) * axes
    if not isinstance(x, Sequence) or len(x) != axes or not all(isinstance(a, int) for a in x):
        fail(
            RuleError, name, shape_of(x), f"a whole number, or one for each of the {axes} axes",
            f"pass {name}={(1,) * axes}",
        )
    return tuple(x)


@value
class Neighborhood(Support):
    """A query meets the `kernel` of keys around it on a lattice of shape `lattice`.

    Positions run over the lattice in row-major order. On each axis the window slides with the
    query, and stops at the edges so that every query meets the same number of keys. `dilation`
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
        lattice = (self.lattice,) if isinstance(self.lattice, int) else tuple(self.lattice)
        if not 1 <= len(lattice) <= 3:
            fail(
                RuleError, "lattice", f"{len(lattice)} axes", "1, 2 or 3 axes",
                "pass the lattice as (height, width), say",
            )
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
                    ValueRangeError, "kernel", f"{k} with dilation {d}",
                    f"kernel x dilation within the axis of {size}", "shrink one of them",
                )
            if s > k:
                fail(
                    ValueRangeError, "stride", s, f"at most the kernel of {k}",
                    "queries that share a window must lie in it",
                )

    def check(self, n: int, m: int) -> None:
        """Positions must be those of the lattice."""
        if max(n, m) > prod(self.lattice):
            fail(
                ShapeError, "lattice", self.lattice, f"room for {max(n, m)} positions",
                "make the lattice the shape of the tokens",
            )

    def along(self, axis: int, x: Tensor, y: Tensor) -> Tensor:
        """Say for coordinates on one axis whether query x may meet key y."""
        size, k = self.lattice[axis], self.kernel[axis]
        d, s = self.dilation[axis], self.stride[axis]
        group, place = x % d, torch.div(x, d, rounding_mode="floor")
        key = torch.div(y, d, rounding_mode="floor")
        last = torch.div(size - 1 - group, d, rounding_mode="floor")  # of this dilation group
        share = torch.div(place, s, rounding_mode="floor") * s
        if self.causal[axis]:
            leader = torch.minimum(share + s - 1, last)
            near = (key <= place) & (leader - key < k)
        else:
            leader = torch.minimum(share + s // 2, last)
            first = torch.minimum((leader - k // 2).clamp(min=0), last - k + 1)
            near = (key >= first) & (key < first + k)
        return near & (y % d == group)

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
