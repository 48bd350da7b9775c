"""Sets of tokens, as queries or as keys: combinations of sets, and sets by number or mask."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.value import Value, value
from regard.run.rows import rows_of


class TokenSet(Value):
    """A set of tokens, as queries or as keys; `|`, `&` and `~` combine sets.

    A set known before the call is a `KnownTokens`; one found in the call itself is a
    `FoundInCall`.
    """

    # What its positions count: "all" tokens of the sequence, or those of the "text" or "image".
    modality: ClassVar[str] = "all"

    def __or__(self, other: TokenSet) -> TokenSet:
        return AnyOf((self, _need(other)))

    def __and__(self, other: TokenSet) -> TokenSet:
        return AllOf((self, _need(other)))

    def __invert__(self) -> TokenSet:
        return self.part if isinstance(self, NotIn) else NotIn(self)

    @abstractmethod
    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return which keys [b or 1, h or 1, m] or queries [b or 1, 1, n] belong to it."""

    @property
    def label(self) -> str:
        """Return its name in receipts."""
        return str(self)


class KnownTokens(TokenSet):
    """Base of sets that are known before the call, by position."""

    @abstractmethod
    def positions(self, at: EditContext, side: str) -> Tensor:
        """Return which positions belong to it, bool [b or 1, positions]; later ones do not."""

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return which keys [b or 1, h or 1, m] or queries [b or 1, 1, n] belong to it."""
        chosen = self.positions(at, side)
        place = at.key_positions if side == "keys" else at.query_positions[:, None]
        if not at.has_prompt(side):
            return torch.zeros(1, 1, place.shape[-1], dtype=torch.bool, device=at.device)
        if self.modality != "all" and at.site is not None and at.site.kind != "self":
            # Text and image are each counted from their first token.
            own = at.tokens_at(side, self.modality)
            place = torch.where(place < own.stop, place - own.start, -1)
        found = looked_up(chosen.to(at.device), place, at.call.b, at.branches)
        return expand_to_heads(found, at)


def _need(x: object) -> TokenSet:
    if not isinstance(x, TokenSet):
        fail(RuleError, "which", shape_of(x), "a set of tokens", 'pass Phrase("Paris"), say')
    return x


def looked_up(chosen: Tensor, place: Tensor, b: int, branches: int = 1) -> Tensor:
    """Read bool [b or 1, positions] at places [b or 1, g or 1, m]; False outside its range.

    Beams of a row are adjacent, so a row of the set may apply to several; guidance branches are
    blocks of all rows.
    """
    if chosen.shape[0] not in (1, b):
        if b % (chosen.shape[0] * branches):
            fail(
                ValueRangeError, "which", f"tokens of {chosen.shape[0]} rows", f"1 or {b} rows",
                "name tokens for each row of the batch",
            )  # fmt: skip
        chosen = chosen.repeat_interleave(b // chosen.shape[0] // branches, 0)
        chosen = chosen.repeat(branches, 1)
    size = chosen.shape[1]
    inside = (place >= 0) & (place < size)
    rows = max(chosen.shape[0], place.shape[0])
    index = place.clamp(0, max(size - 1, 0)).expand(rows, -1, -1)
    table = chosen[:, None].expand(rows, index.shape[1], size)
    return (table.gather(2, index) if size else torch.zeros_like(index, dtype=torch.bool)) & inside


def expand_to_heads(mask: Tensor, at: EditContext) -> Tensor:
    """Repeat a set of key heads [b, g, m] for the query heads that share them."""
    many = mask.shape[1]
    return mask if many in (1, at.call.h) else mask.repeat_interleave(at.call.h // many, 1)


class FoundInCall(TokenSet):
    """Base of sets that are found in the first call of a prompt, for each site and head.

    The result is kept as long as the prompt: decoded tokens do not search again.
    """

    @abstractmethod
    def find(self, at: EditContext) -> Tensor:
        """Return which keys of the call belong to it, bool [b or 1, h or 1, m]."""

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Find it, or return what was found before."""
        if side != "keys":
            fail(RuleError, "queries", str(self), "a set known before the call", "name tokens")
        kept: Tensor | None = at.memory.get(self)
        if kept is None:
            found = self.find(_of_prompt(at))
            place = expand_to_heads(at.key_positions, at)
            shape = (max(found.shape[0], place.shape[0]), max(found.shape[1], place.shape[1]))
            place = place.expand(*shape, -1)
            kept = torch.zeros(*shape, int(place.max()) + 1, dtype=torch.bool, device=at.device)
            kept.scatter_(2, place.clamp(min=0), found.expand_as(place) & (place >= 0))
            at.memory[self] = kept
        place = expand_to_heads(at.key_positions, at)
        shape = (max(kept.shape[0], place.shape[0]), max(kept.shape[1], place.shape[1]))
        if kept.shape[0] not in (1, at.call.b):  # beams
            kept = kept.repeat_interleave(at.call.b // kept.shape[0], 0)
            shape = (at.call.b, shape[1])
        place, size = place.expand(*shape, -1), kept.shape[2]
        found = kept.expand(*shape, -1).gather(2, place.clamp(0, size - 1))
        return found & (place >= 0) & (place < size)


def _of_prompt(at: EditContext) -> EditContext:
    """Drop queries after the prompt, which come with it where there is no cache."""
    length, call = at.prompt_length, at.call
    if length is None or call.n <= length or call.rule.offset or call.q_positions is not None:
        return at
    return replace(at, call=rows_of(call, slice(0, length)))


@value
class AllTokens(TokenSet):
    """Every token.

    >>> AllTokens() & ~TokenPositions((0,))
    AllOf((AllTokens(), NotIn(TokenPositions((0,)))))
    """

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return every slot that holds a token."""
        many = at.call.n if side == "queries" else at.call.m
        whole = torch.ones(1, 1, many, dtype=torch.bool, device=at.device)
        return expand_to_heads(at.key_positions >= 0, at) if side == "keys" else whole


class _OfParts(TokenSet):
    """Base of sets that combine others."""

    parts: tuple[TokenSet, ...]
    join: ClassVar[Any]

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Compute the sets one by one, and combine them."""
        return reduce(type(self).join, (part.mask(at, side) for part in self.parts))


@value
class AnyOf(_OfParts):
    """Tokens in any of several sets."""

    parts: tuple[TokenSet, ...]
    join: ClassVar[Any] = staticmethod(torch.logical_or)


@value
class AllOf(_OfParts):
    """Tokens in all of several sets."""

    parts: tuple[TokenSet, ...]
    join: ClassVar[Any] = staticmethod(torch.logical_and)


@value
class NotIn(TokenSet):
    """Tokens not in a set."""

    part: TokenSet

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return every slot that holds a token and is not in the set."""
        return AllTokens().mask(at, side) & ~self.part.mask(at, side)


@value
class TokenPositions(KnownTokens):
    """Tokens by number, from 0, including padding; negative numbers count from the prompt's end.

    >>> TokenPositions(range(3)).numbers
    (0, 1, 2)
    """

    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        many = (self.numbers,) if isinstance(self.numbers, int) else tuple(self.numbers)
        if not many or any(isinstance(x, bool) or not isinstance(x, int) for x in many):
            fail(
                ValueRangeError, "numbers", shape_of(self.numbers), "one or more whole numbers",
                "pass TokenPositions([3, 4])",
            )  # fmt: skip
        object.__setattr__(self, "numbers", many)

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the tokens with these numbers."""
        length = at.prompt.length
        if length is None and min(self.numbers) < 0:
            fail(
                ValueRangeError, "numbers", min(self.numbers), "numbers from 0 on, where the "
                "prompt is not known", "count from the start",
            )  # fmt: skip
        index = [x if x >= 0 else x + (length or 0) for x in self.numbers]
        most = length if length is not None else at.call.m
        if not 0 <= min(index) <= max(index) < most:
            fail(
                ValueRangeError, "numbers", list(self.numbers), f"tokens 0 to {most - 1}",
                "count the tokens of the prompt from 0",
            )  # fmt: skip
        made = torch.zeros(1, max(index) + 1, dtype=torch.bool)
        made[0, index] = True
        return made


@value
class FromLastToken(KnownTokens):
    """The last token of the prompt and all decoded ones: each was the newest token once.

    With right padding it is the last real token.

    >>> FromLastToken()
    FromLastToken()
    """

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the tokens from the last one on."""
        length = at.prompt.length
        place = at.query_positions if side == "queries" else at.key_positions
        most = int(place.max()) + 1
        if length is None:
            length = most
        last = torch.tensor([length - 1])
        real = at.prompt.real
        if real is not None:
            line = torch.arange(length, device=real.device)
            last = torch.where(real, line, -1).amax(1).cpu()
        return torch.arange(max(most, length))[None] >= last[:, None]


@value
class TokenMask(KnownTokens):
    """Tokens by a mask, bool [positions] or [b, positions].

    >>> print(TokenMask(torch.tensor([True, False])))
    TokenMask(<bool 1x2>)
    """

    chosen: Tensor

    def __post_init__(self) -> None:
        x = self.chosen
        if not isinstance(x, Tensor) or x.dtype != torch.bool or x.dim() not in (1, 2):
            fail(
                ValueRangeError, "chosen", shape_of(x), "bool [positions] or [b, positions]",
                "compare, do not count: ids == 5",
            )  # fmt: skip
        if not bool(x.any()):
            fail(ValueRangeError, "chosen", "an empty mask", "at least one token", "choose a token")
        object.__setattr__(self, "chosen", x if x.dim() == 2 else x[None])

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Return the mask."""
        return self.chosen
