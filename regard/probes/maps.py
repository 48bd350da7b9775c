"""Data for views: margins and a small map of each head; q, k and lse of chosen heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.result import Result
from regard.core.rule import Rule
from regard.core.score import SoftCap
from regard.core.score.matches import DotMatch
from regard.core.weigh import Softmax
from regard.models.forward import Forward
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.base import looks_ahead
from regard.run.mass import log_weight
from regard.run.survey import survey

THUMB, FINE = 48, 256
# Bytes of queries and keys to keep, so that chosen heads need no second forward.
KEPT_BYTES = 512 * 2**20


@dataclass
class Drawn:
    """Margins and the small map of one site, of the first input [h, ...]."""

    entropy: Tensor
    received: Tensor
    tiles: Tensor
    n: int
    m: int
    rule: Rule
    patches: Patches | None = None
    tile: int = 1


@dataclass(frozen=True)
class Patches:
    """The patches of an image: their grid, and the index of the first among queries and among keys.

    An index is None if queries, or keys, hold no patches, like the keys of cross-attention to text.
    Frames of sound are a grid of one row.
    """

    grid: tuple[int, int]
    queries: int | None
    keys: int | None


def patches_of(
    site: Site, n: int, m: int, now: Forward | None = None, seen: tuple[int, ...] | None = None
) -> Patches | None:
    """Find the patches at a site; tokens that are no patches come first where a model has some.

    `seen` is the grid of the tower that saw the image, whose patches, or as many merged ones,
    stand in the prompt of a model of language and vision.

    >>> patches_of(Site(0, module="attn", grid=(2, 3)), 7, 7)
    Patches(grid=(2, 3), queries=1, keys=1)
    >>> now = Forward(0, image_tokens=torch.tensor([[False, True, True, True, True, False]]))
    >>> patches_of(Site(0, module="attn"), 6, 6, now, (4, 4))
    Patches(grid=(2, 2), queries=1, keys=1)
    """
    marks = None if now is None else now.image_tokens
    if marks is not None and site.grid is None and site.kind == "self" and n == m:
        return _in_a_prompt(marks[0], n, seen)
    if site.grid is not None and len(site.grid) == 2:
        special = n - math.prod(site.grid)
        return Patches(site.grid, special, special) if special >= 0 and n == m else None
    known = site.kind == "cross" or "image" in (site.modality or "")
    if now is None or not known:
        return None
    image = slice(0, n) if site.kind == "cross" else site.span("image", n, now)
    grid = None if image is None else now.grid_of(image.stop - image.start)
    if image is None or grid is None or len(grid) != 2:
        return None
    keys = None if site.kind == "cross" else site.span("image", m, now)
    return Patches((grid[0], grid[1]), image.start, None if keys is None else keys.start)


def _in_a_prompt(marks: Tensor, n: int, seen: tuple[int, ...] | None) -> Patches | None:
    """Find one image in a prompt, by marks [n] of its tokens, which stand side by side."""
    places = marks.nonzero()[:, 0].tolist()
    if seen is None or len(marks) != n or not places or places[-1] - places[0] >= len(places):
        return None
    grid = Forward(0, grid=seen).grid_of(len(places))
    return None if grid is None else Patches((grid[0], grid[1]), places[0], places[0])


class Maps(Stage):
    """Keep entropy, received weight and the largest weight of each tile, of the first row."""

    want = ("entropy", "received", "tiles")

    def __init__(self, tokens: int, where: Any = None) -> None:
        super().__init__(where)
        self.survey_options = {"tile": max(1, math.ceil(tokens / THUMB))}  # type: ignore[misc]
        self.found: dict[Site, Drawn] = {}
        self.kept: dict[Site, Call] | None = {}  # None: too much to keep
        self._left = KEPT_BYTES
        self._grid: tuple[int, ...] | None = None  # of the tower that saw the image

    def see(self, call: Call, result: Result) -> None:
        """Keep what is drawn; of a site that attends twice, the first time."""
        site, survey = call.site, result.survey
        if survey is None or site in self.found:
            return
        received = survey.received[0] / survey.seen[0].clamp(min=1)
        patches = None
        if call.site is not None:
            self._grid = site.grid or self._grid
            patches = patches_of(site, call.n, call.m, call.forward, self._grid)
        self.found[site] = Drawn(
            survey.entropy[0].float().cpu(), received.float().cpu(),
            survey.tile_max[0].float().cpu(), call.n, call.m, call.rule, patches,
            self.survey_options["tile"],
        )  # fmt: skip
        self._keep(site, call)

    def _keep(self, site: Site, call: Call) -> None:
        """Keep the first row of a call while there is room, for heads chosen later."""
        if self.kept is None:
            return
        # A rule that holds tensors may hold those of each row, and needs them all.
        rows = slice(None) if call.rule.tensors() else slice(1)
        q, k = call.q[rows], call.k[rows]
        self._left -= sum(x.numel() * x.element_size() for x in (call.q, call.k))
        if self._left < 0:
            self.kept = None
        else:
            self.kept[site] = call.replace(q=q, k=k, v=k)


@dataclass
class Deep:
    """One head in full: enough to compute every weight again."""

    site: Site
    head: int
    kv_head: int
    q: Tensor
    k: Tensor
    lse: Tensor
    map: Tensor
    tile: int
    facts: dict[str, Any]


class DeepHeads(Stage):
    """Keep q, k and lse of chosen heads, and a map of theirs; of the first row."""

    def __init__(self, heads: Sequence[tuple[Site, int]]) -> None:
        super().__init__()
        self.heads, self.found = list(heads), list[Deep]()

    def see(self, call: Call, result: Result) -> None:
        """Keep what was chosen at this site."""
        self.keep(call)

    def keep(self, call: Call) -> None:
        """Keep the chosen heads of a call."""
        for site, head in self.heads:
            if site != call.site or any((d.site, d.head) == (site, head) for d in self.found):
                continue
            group = head * call.g // call.h
            # A rule that holds tensors may hold those of each row.
            rows = slice(None) if call.rule.tensors() else slice(1)
            one = call.replace(
                q=call.q[rows, head : head + 1], k=call.k[rows, group : group + 1],
                v=call.v[rows, group : group + 1],
                rule=call.rule.take_heads([head]),
            )  # fmt: skip
            tile = max(1, math.ceil(max(call.n, call.m) / FINE))
            report = survey(one.q, one.k, one.v, one.rule, want=("tiles", "lse"), tile=tile)
            # With a sink the log-weight of a row is not its log-sum-exp.
            lse = log_weight(one) if one.rule.weigh.has_sink else report.lse
            self.found.append(
                Deep(
                    site, head, group, one.q[0, 0].half().cpu(), one.k[0, 0].half().cpu(),
                    lse[0, 0].float().cpu(), report.tile_max[0, 0].float().cpu(),
                    tile, facts_of(one),
                )
            )  # fmt: skip


def facts_of(call: Call) -> dict[str, Any]:
    """Return what a page needs to recompute weights; `exact` is False if it cannot."""
    rule = call.rule
    match, steps = rule.score.match, rule.score.steps
    dot = isinstance(match, DotMatch)
    scale = match.scale if isinstance(match, DotMatch) else None
    cap = steps[0].cap if len(steps) == 1 and isinstance(steps[0], SoftCap) else None
    plain = dot and len(steps) == (cap is not None) and isinstance(rule.weigh, Softmax)
    causal = not looks_ahead(call)
    rows, cols = torch.arange(call.n), torch.arange(call.m)
    exact = plain and not call.placed and _simple(call, causal, rows, cols)
    return {
        "scale": float(call.d**-0.5 if scale is None else scale),
        "softcap": cap,
        "causal": causal,
        "offset": rule.offset,
        "exact": bool(exact),
    }


def _simple(call: Call, causal: bool, rows: Tensor, cols: Tensor) -> bool:
    """Whether the support is everything, or everything that came before; a sample of rows."""
    some = rows[:: max(1, len(rows) // 64)]
    at = call.at(some, cols)
    allowed = call.rule.support.allows(at.b, at.h, at.i, at.j)
    wanted = at.j <= at.i if causal else torch.ones_like(at.j <= at.i)
    return bool((allowed == wanted).all())


def log_scale(weights: Tensor) -> np.ndarray:
    """Return weights as bytes on a log scale: 0 for 2^-16 and less, 255 for 1.

    >>> log_scale(torch.tensor([0.0, 2.0**-16, 2.0**-8, 1.0])).tolist()
    [0, 0, 128, 255]
    """
    logs = 255 + (255 / 16) * torch.log2(weights.clamp(min=2.0**-17))
    return logs.round().clamp(0, 255).to(torch.uint8).numpy()
