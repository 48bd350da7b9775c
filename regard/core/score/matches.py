"""Matches: scaled dot product, general, additive, Gaussian."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core import value_text
from regard.core.errors import ShapeError, fail
from regard.core.score.base import Match, Score, need_heads, need_number, need_tensor
from regard.core.value import value
from regard.core.value_text import Show


def _scale(scale: float | None, d: int) -> float:
    return d**-0.5 if scale is None else float(scale)


@value
class DotMatch(Match):
    """The scaled dot product: s = scale q.k, with scale 1/sqrt(d) where none is given."""

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            need_number("scale", self.scale)

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the product itself."""
        return q, k, _scale(self.scale, q.shape[-1])

    def __str__(self) -> str:
        return self.as_score(value_text.briefly)

    def as_score(self, show: Show) -> str:
        """Write the score that begins with this match."""
        return f"Dot({value_text.arguments(self, show)})"


@value
class GeneralMatch(Match):
    """Luong's general form: s = scale q W k, with W [h or 1, d_q, d_k]."""

    weight: Tensor
    scale: float | None = None

    _head_axis: ClassVar = {"weight": 0}

    def __post_init__(self) -> None:
        need_tensor("weight", self.weight, "[h or 1, d, d]")
        if self.scale is not None:
            need_number("scale", self.scale)

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        """Carry W in the queries."""
        scale = _scale(self.scale, q.shape[-1])
        return q @ self.weight.to(q), k, scale  # [b, h, n, d] @ [h, d, d]

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """W maps queries to keys."""
        need_heads("weight", self.weight.shape[0], h)
        if self.weight.shape[1:] != (d, d):
            fail(
                ShapeError,
                "weight",
                f"{list(self.weight.shape)}",
                f"[h or 1, {d}, {d}]",
                "let W map the head size of q to that of k",
            )

    def __str__(self) -> str:
        return self.as_score(value_text.briefly)

    def as_score(self, show: Show) -> str:
        """Write the score that begins with this match."""
        return f"General({value_text.arguments(self, show)})"


@value
class AdditiveMatch(Match):
    """Bahdanau's additive form: s = w . tanh(q A + k B); A, B [h or 1, d, a], w [h or 1, a]."""

    of_query: Tensor
    of_key: Tensor
    weight: Tensor

    _head_axis: ClassVar = {"of_query": 0, "of_key": 0, "weight": 0}

    def __post_init__(self) -> None:
        need_tensor("of_query", self.of_query, "[h or 1, d, a]")
        need_tensor("of_key", self.of_key, "[h or 1, d, a]")
        need_tensor("weight", self.weight, "[h or 1, a]")

    def between(self, q: Tensor, k: Tensor) -> Tensor:
        """Compare in the hidden space: O(n m a) work and memory for the block it is asked for."""
        query = (q @ self.of_query.to(q)).unsqueeze(3)  # [b, h, n, 1, a]
        key = (k @ self.of_key.to(k)).unsqueeze(2)  # [b, h, 1, m, a]
        return torch.einsum("bhnma,ha->bhnm", torch.tanh(query + key), self._weights(q))

    def _weights(self, q: Tensor) -> Tensor:
        return self.weight.to(q).expand(q.shape[1], -1)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """The maps take q and k to one hidden size."""
        for name in ("of_query", "of_key", "weight"):
            need_heads(name, getattr(self, name).shape[0], h)
        hidden = {self.of_query.shape[-1], self.of_key.shape[-1], self.weight.shape[-1]}
        if len(hidden) > 1 or self.of_query.shape[1] != d or self.of_key.shape[1] != d:
            fail(
                ShapeError,
                "of_query",
                f"{list(self.of_query.shape)}",
                f"[h or 1, {d}, a] with one hidden size a in of_query, of_key and weight",
                "make the three agree",
            )

    def __str__(self) -> str:
        return self.as_score(value_text.briefly)

    def as_score(self, show: Show) -> str:
        """Write the score that begins with this match."""
        return f"Additive({value_text.arguments(self, show)})"


@value
class GaussianMatch(Match):
    """Closeness: s = -|q - k|^2 / (2 width^2)."""

    width: float = 1.0

    def __post_init__(self) -> None:
        need_number("width", self.width, above=0)

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        """Expand the square: q.k - |q|^2/2 - |k|^2/2, the squares in two extra channels."""
        q_half = -0.5 * (q * q).sum(-1, keepdim=True)
        k_half = -0.5 * (k * k).sum(-1, keepdim=True)
        query = torch.cat([q, q_half, torch.ones_like(q_half)], dim=-1)
        key = torch.cat([k, torch.ones_like(k_half), k_half], dim=-1)
        return query, key, self.width**-2

    def __str__(self) -> str:
        return self.as_score(value_text.briefly)

    def as_score(self, show: Show) -> str:
        """Write the score that begins with this match."""
        return f"Gaussian({value_text.arguments(self, show)})"


def Dot(scale: float | None = None) -> Score:
    """Score by the scaled dot product; 1/sqrt(d) where no scale is given.

    >>> Dot() == Dot(), Dot() == Dot(1.0)
    (True, False)
    """
    return Score(DotMatch(scale))


def General(weight: Tensor, scale: float | None = None) -> Score:
    """Score by q W k (Luong), `weight` [h or 1, d, d].

    >>> print(General(torch.eye(2)[None]))
    General(<float32 1x2x2>)
    """
    return Score(GeneralMatch(weight, scale))


def Additive(of_query: Tensor, of_key: Tensor, weight: Tensor) -> Score:
    """Score by w . tanh(q A + k B) (Bahdanau); A, B [h or 1, d, a], w [h or 1, a].

    >>> print(Additive(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 3)))
    Additive(<float32 1x2x3>, <float32 1x2x3>, <float32 1x3>)
    """
    return Score(AdditiveMatch(of_query, of_key, weight))


def Gaussian(width: float = 1.0) -> Score:
    """Score by closeness, -|q - k|^2 / (2 width^2).

    >>> Gaussian(2.0)
    Gaussian(2.0)
    """
    return Score(GaussianMatch(width))


def folded(score: Score, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float, Score] | None:
    """Carry as much of a score as possible in q and k: (q, k, scale, what is left to do).

    The score left over starts from a plain product. None if the match is no product.
    """
    made = score.match.prepare(q, k)
    if made is None:
        return None
    query, key, scale = made
    steps = score.steps
    while steps:
        next_pair = steps[0].fold(query, key, scale)
        if next_pair is None:
            break
        query, key = next_pair
        steps = steps[1:]
    return query, key, scale, Score(DotMatch(scale), steps)
