"""Losses of the maps of a prompt: words that are neglected, overlap, or leave their regions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from regard.controls.diffusion.perturbed import blur_weights
from regard.core.errors import RuleError, fail
from regard.core.value import Value, value


class TextMaps(NamedTuple):
    """The picture's weights on each prompt token, [b, rows columns, text], averaged over heads.

    `sets` holds the tokens of each word, bool [b or 1, text], `regions` the part of each subject,
    bool [b or 1, rows columns].
    """

    maps: Tensor
    grid: tuple[int, int]
    sets: tuple[Tensor, ...]
    regions: tuple[Tensor, ...] = ()

    def sharpened(self, times: float = 100.0, ignore: Sequence[int] = (0,)) -> Tensor:
        """Return softmax(times A) over the tokens of the prompt, [b, n, text], 0 where ignored."""
        keep = torch.ones(self.maps.shape[-1], dtype=torch.bool, device=self.maps.device)
        keep[list(ignore)] = False
        scores = (times * self.maps).masked_fill(~keep, -math.inf)
        return scores.softmax(-1)

    def of_words(self, maps: Tensor, smooth: float = 0.0) -> list[Tensor]:
        """Return the map of each word, [b, n]: the mean of its tokens, smoothed."""
        found = []
        for one in self.sets:
            marks = one.to(maps)
            own = (maps * marks[:, None]).sum(-1) / marks.sum(-1, keepdim=True).clamp(min=1)
            if smooth:
                down, across = (blur_weights(n, smooth, own) for n in self.grid)
                own = torch.einsum("ij,kl,bjl->bik", down, across, own.unflatten(1, self.grid))
                own = own.flatten(1)
            found.append(own)
        return found


class MapLoss(Value):
    """Base of losses of maps: a number for each picture [b], 0 if it is satisfied."""

    @abstractmethod
    def loss(self, maps: TextMaps) -> Tensor:
        """Return the loss of each picture."""


@value
class NeglectedWord(MapLoss):
    """1 - the peak of the least attended word (Attend-and-Excite).

    Maps are sharpened over the prompt's tokens except those of `ignore` (the start of the text),
    and smoothed over the picture.

    >>> maps = TextMaps(torch.rand(1, 6, 3), (2, 3), (torch.tensor([[False, True, False]]),))
    >>> NeglectedWord().loss(maps).shape
    torch.Size([1])
    """

    sharpen: float = 100.0
    smooth: float = 0.5
    ignore: tuple[int, ...] = (0,)

    def loss(self, maps: TextMaps) -> Tensor:
        """Return the loss of each picture."""
        peaks = [x.amax(1) for x in maps.of_words(maps.sharpened(self.sharpen, self.ignore),
                                                  self.smooth)]  # fmt: skip
        return (1 - torch.stack(peaks)).clamp(min=0).amax(0)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the soft overlap of maps [b, n]: 0.5 if they are equal, 0 if disjoint.

    >>> overlap(torch.ones(1, 3), torch.ones(1, 3)).item()
    0.5
    """
    return torch.minimum(a, b).sum(-1) / (a + b).sum(-1).clamp(min=1e-12)


@value
class SeparateWords(MapLoss):
    """Soft overlap of the maps of words, and 1 - that of each with its previous mask (A-STAR).

    `before` are masks [words, b, n] of the step before: `keep(maps)` returns those of this one.

    >>> maps = TextMaps(torch.rand(1, 6, 3), (2, 3), tuple(torch.eye(3).bool()[:, None][1:]))
    >>> SeparateWords().loss(maps).shape, SeparateWords().keep(maps).shape
    (torch.Size([1]), torch.Size([2, 1, 6]))
    """

    before: Tensor | None = None
    retain: float = 1.0
    threshold: float = 0.5
    sharpen: float = 100.0
    smooth: float = 0.5
    ignore: tuple[int, ...] = (0,)

    def _words(self, maps: TextMaps) -> list[Tensor]:
        found = maps.of_words(maps.sharpened(self.sharpen, self.ignore), self.smooth)
        low, high = ([f(x, 1, True) for x in found] for f in (torch.amin, torch.amax))
        many = zip(found, low, high, strict=True)
        return [(x - a) / (b - a).clamp(min=1e-12) for x, a, b in many]

    def keep(self, maps: TextMaps) -> Tensor:
        """Return the current mask of each word, [words, b, n], of 0 and 1."""
        return (torch.stack(self._words(maps)) > self.threshold).float().detach()

    def loss(self, maps: TextMaps) -> Tensor:
        """Return the loss of each picture."""
        words = self._words(maps)
        if len(words) < 2:
            fail(RuleError, "words", f"{len(words)}", "two or more to keep apart", "name another")
        made = torch.stack([overlap(a, b) for a, b in combinations(words, 2)]).mean(0)
        if self.before is not None:
            old = self.before.to(words[0])
            lost = [1 - overlap(a, b) for a, b in zip(words, old, strict=True)]
            made = made + self.retain * torch.stack(lost).sum(0)
        return made


@value
class InsideRegions(MapLoss):
    """Sum of squares of the share of each subject's words that falls outside its region.

    Mass outside counts `outside` times. 0 if and only if all of it is inside. (Bounded Attention)

    >>> region = torch.tensor([[True, True, False]])
    >>> maps = TextMaps(torch.tensor([[[1.0], [1.0], [0.0]]]), (1, 3), (torch.ones(1, 1).bool(),),
    ...                 (region,))
    >>> InsideRegions().loss(maps).item()
    0.0
    """

    outside: float = 1.0

    def loss(self, maps: TextMaps) -> Tensor:
        """Return the loss of each picture."""
        if len(maps.regions) != len(maps.sets):
            fail(RuleError, "words", "words", "subjects, which have regions", "pass Subject(...)")
        made = torch.zeros(maps.maps.shape[0], device=maps.maps.device)
        for words, region in zip(maps.of_words(maps.maps), maps.regions, strict=True):
            inside = (words * region).sum(1)
            whole = inside + self.outside * (words * ~region).sum(1)
            made = made + (1 - inside / whole.clamp(min=1e-12)).square()
        return made
