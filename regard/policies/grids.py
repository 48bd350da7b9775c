"""Policies for image and video models: sparse attention on a grid of tokens.

Each assigns the tokens of the image to groups, and defines which groups attend to each other; text
attends to everything and everything attends to it. Tokens are ordered by group before they are run,
so that masked groups are whole tiles.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.support import Kinds, Support
from regard.models.attach import hook_of
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.kinds import Select
from regard.policies.registry import register
from regard.run.executor import Answer, No, Yes


class Image(NamedTuple):
    """The image of a call: its grid (frames first, in a video), and its tokens among `n`."""

    grid: tuple[int, ...]
    first: int
    n: int

    @property
    def span(self) -> slice:
        """The tokens of the image."""
        return slice(self.first, self.first + prod(self.grid))

    @property
    def rest(self) -> int:
        """The number of tokens that are not image: text, a class token."""
        return self.n - prod(self.grid)

    def coordinates(self) -> list[Tensor]:
        """Return the coordinate of each image token on each axis, [tokens] each."""
        axes = [torch.arange(size) for size in self.grid]
        return [x.flatten() for x in torch.meshgrid(*axes, indexing="ij")]


def image_of(call: Call) -> Image | None:
    """Find the image in a call of self or joint attention; None in a call of something else."""
    site: Site = call.site
    if site.kind == "cross" or call.n != call.m or "refiner" in site.module:
        return None
    if site.grid is not None:  # a model that reads images has its other tokens first
        return Image(site.grid, call.n - prod(site.grid), call.n)
    now = call.forward
    if now is None or now.grid is None:
        fail(
            CapabilityError, "grid", f"{site.module}, with an image of unknown grid",
            "a forward that gets the shape of its image",
            "pass latents as they are [b, c, (f,) h, w], or img_ids, img_shapes, height and width",
        )  # fmt: skip
    if site.kind == "joint":
        found = site.span("image", call.n, now)
        fits = found is not None and found.stop - found.start == prod(now.grid)
        return Image(now.grid, found.start, call.n) if found is not None and fits else None
    # The lower resolutions of a UNet are those of its blocks for images alone.
    grid = now.grid_of(call.n) if site.modality == "image" else now.grid
    return Image(grid, 0, call.n) if grid is not None and prod(grid) == call.n else None


@dataclass
class OnGrid(Select):
    """Base of policies on a grid: override `groups`."""

    what: ClassVar[str] = "images"
    needs_cache: ClassVar[bool] = False

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model's tokens are on a grid."""
        if not any(s.grid for s in sites) and hook_of(model)[0].name != "diffusers":
            return No("whose tokens are not on a grid")
        if not any(s.kind in ("self", "joint") for s in sites):
            return No("which has no self-attention")
        return Yes()

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Drop the supports of an earlier model."""
        super().begin(model, sites, budget)
        self._made: dict[Any, Support] = {}

    @abstractmethod
    def groups(self, image: Image, call: Call) -> tuple[Tensor, Tensor]:
        """Return the group of each image token, [tokens], and which attend to each other, bool
        [groups, groups].
        """

    def key(self, image: Image, call: Call) -> Any:
        """Return what the groups depend on."""
        return image

    def select(self, step: Step) -> Call:
        """Mask the pairs of groups that do not attend to each other."""
        call = step.call
        image = None if self.budget.whole else image_of(call)
        if image is None:
            return call
        key = (self.key(image, call), call.rule.support)
        if key not in self._made:
            groups, meets = self.groups(image, call)
            support, _ = with_rest(image, groups, meets)
            # Where all attend to all, there is nothing to reorder.
            whole = call.rule.support if bool(meets.all()) else call.rule.support & support
            self._made[key] = whole
        support = self._made[key]
        return call.replace(rule=call.rule.replace(support=support))


def with_rest(image: Image, groups: Tensor, meets: Tensor) -> tuple[Support, float]:
    """Build the support of groups of image tokens, with text unmasked; return it and its pairs."""
    count = len(meets)
    kinds = torch.full((image.n,), count)
    kinds[image.span] = groups
    table = torch.ones(count + 1, count + 1, dtype=torch.bool)
    table[:count, :count] = meets
    sizes = torch.bincount(kinds, minlength=count + 1).double()
    return Kinds(kinds, table), float(sizes @ table.double() @ sizes)


def boxes(image: Image, group: tuple[int, ...]) -> tuple[Tensor, list[Tensor], tuple[int, ...]]:
    """Split a grid into boxes: the box of each token, coordinates of boxes, and boxes on each axis.

    >>> boxes(Image((2, 4), 0, 8), (2, 2))[0].tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    counts = tuple(-(-s // g) for s, g in zip(image.grid, group, strict=True))
    box = torch.zeros(prod(image.grid), dtype=torch.long)
    for x, g, many in zip(image.coordinates(), group, counts, strict=True):
        box = box * many + x // g
    return box, Image(counts, 0, prod(counts)).coordinates(), counts


@method("grat", call='from regard.policies import policy; policy("grat")')
@register("grat", "grat_surrounding")
@dataclass
class Grat(OnGrid):
    """Let a group of tokens attend to the groups around it, within `radius` on each axis.

    Groups are boxes of the grid, (4, 8, 8) tokens in a video and (8, 8) in an image. At the edges
    the window moves inward, so that all groups attend to equally many: 2 radius + 1 on each axis.
    Without a radius it is the largest that computes at most `keep` of the pairs, and at least 1.
    (GRAT, Ren et al. 2025)
    """

    group: tuple[int, ...] | None = None
    radius: int | None = None

    def size(self, image: Image) -> tuple[int, ...]:
        """Return the sides of a group, within the grid."""
        usual = (4, 8, 8)[-len(image.grid) :]
        sides = usual if self.group is None else self.group
        good = isinstance(sides, tuple | list) and all(isinstance(s, int) for s in sides)
        if not good or len(sides) != len(image.grid) or min(sides) < 1:
            fail(
                RuleError, "group", shape_of(self.group), f"{len(image.grid)} sides of at least 1",
                f"pass group={usual}, or leave it out",
            )  # fmt: skip
        return tuple(min(s, g) for s, g in zip(sides, image.grid, strict=True))

    def groups(self, image: Image, call: Call) -> tuple[Tensor, Tensor]:
        """Return boxes, and which are near each other."""
        box, places, counts = boxes(image, self.size(image))
        if self.radius is not None:
            if self.radius < 0:
                fail(ValueRangeError, "radius", self.radius, "0 or more", "pass radius=1")
            return box, surrounding(places, counts, self.radius)
        share = 1.0 if self.budget.share is None else self.budget.share
        sizes = torch.bincount(box).double()
        best = surrounding(places, counts, 1)
        for radius in range(2, max(counts)):
            meets = surrounding(places, counts, radius)
            if float(sizes @ meets.double() @ sizes) > share * float(sizes.sum()) ** 2:
                break
            best = meets
        return box, best


@register("grat_criss_cross")
@dataclass
class GratCrissCross(Grat):
    """Let a group of tokens attend to groups with the same coordinate on some axis.

    In an image its row and its column of groups; in a video the groups of the same time, the same
    height or the same width. The pairs follow from the grid; `keep` has no effect.
    (GRAT, Ren et al. 2025)
    """

    def groups(self, image: Image, call: Call) -> tuple[Tensor, Tensor]:
        """Return boxes, and which share a coordinate."""
        box, places, _ = boxes(image, self.size(image))
        return box, torch.stack([x[:, None] == x for x in places]).any(0)


def surrounding(places: list[Tensor], counts: tuple[int, ...], radius: int) -> Tensor:
    """Return which boxes are within a radius on every axis, bool [boxes, boxes].

    >>> surrounding([torch.arange(4)], (4,), 1).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    meets = torch.ones(len(places[0]), len(places[0]), dtype=torch.bool)
    for x, many in zip(places, counts, strict=True):
        first = (x - radius).clamp(max=max(many - 2 * radius - 1, 0)).clamp(min=0)
        last = (first + 2 * radius).clamp(max=many - 1)
        meets &= (x >= first[:, None]) & (x <= last[:, None])
    return meets
