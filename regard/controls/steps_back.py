"""Decoding steps for `generate`: a penalty, contrast with a second run, and rollback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail, shape_of

Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TokenPenalty:
    """Lower the scores of some tokens by `strength`; 0 changes nothing.

    >>> TokenPenalty((1,), 2.0)(torch.zeros(1, 1).long(), torch.zeros(1, 3)).tolist()
    [[0.0, -2.0, 0.0]]
    """

    tokens: tuple[int, ...]
    strength: float = 1.0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [b, vocabulary] with the penalty."""
        if not self.strength:
            return scores
        made = scores.clone()
        made[:, list(self.tokens)] -= self.strength
        return made


@dataclass
class Contrast:
    """(1 + strength) scores - strength other, where `other(ids)` [b, vocabulary] is a second run.

    The second run may have no image, or a degraded one: it shows what the model would say anyway.
    Only tokens whose score is within `cutoff` of the best are allowed. 0 changes nothing.

    >>> louder = Contrast(lambda ids: torch.tensor([[1.0, 0.0]]), 1.0, cutoff=9.0)
    >>> louder(torch.zeros(1, 1).long(), torch.tensor([[1.0, 1.0]])).tolist()
    [[1.0, 2.0]]
    """

    other: Callable[[Tensor], Tensor]
    strength: float = 1.0
    cutoff: float = 2.3

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [b, vocabulary] moved away from the other run."""
        if not self.strength:
            return scores
        other = self.other(ids)
        if other.shape != scores.shape:
            fail(
                ValueRangeError, "other", shape_of(other), f"scores {list(scores.shape)}",
                "return the scores of the next token",
            )  # fmt: skip
        made = (1 + self.strength) * scores - self.strength * other
        kept = scores >= scores.amax(-1, keepdim=True) - self.cutoff
        return torch.where(kept, made, -torch.inf)


@dataclass
class Decoded:
    """The output of decoding with rollback: ids [1, n], and the steps back.

    `back` are pairs (position gone back to, token that was banned there).
    """

    ids: Tensor
    back: list[tuple[int, int]] = field(default_factory=list)
    forwards: int = 0


@torch.no_grad()
def decode_with_steps_back(
    model: Any, ids: Tensor, *, tokens: int, choose: Processor | None = None,
    go_back: Callable[[Sequence[int], Sequence[float]], int | None], most: int = 5,
    end: int | None = None,
) -> Decoded:  # fmt: skip
    """Decode greedily; where `go_back` returns a position, go there and choose another token.

    `go_back(decoded, confidence)` is called after each token; it returns a position among the
    decoded tokens, or None to continue. The token there is never chosen at that position again; a
    position is revisited at most `most` times. `choose` changes the scores of the next token. The
    cache is cropped to the position, so the result is that of a fresh run.
    """
    if ids.dim() != 2 or ids.shape[0] != 1:
        fail(ValueRangeError, "ids", shape_of(ids), "ids [1, n]", "decode one row at a time")
    made = Decoded(ids)
    start = ids.shape[1]
    decoded: list[int] = []
    confidence: list[float] = []
    banned: dict[tuple[int, ...], set[int]] = {}
    times: dict[int, int] = {}
    cache, seen = None, 0
    while len(decoded) < tokens:
        whole = torch.cat((ids, torch.tensor([decoded], dtype=ids.dtype, device=ids.device)), 1)
        out = model(whole[:, seen:], past_key_values=cache, use_cache=True)
        cache, seen, made.forwards = out.past_key_values, whole.shape[1], made.forwards + 1
        scores = out.logits[:, -1].float()
        scores = scores if choose is None else choose(whole, scores)
        for token in banned.get(tuple(decoded), ()):
            scores[:, token] = -torch.inf
        token = int(scores.argmax(-1))
        confidence.append(float(scores.softmax(-1)[0, token]))
        decoded.append(token)
        place = go_back(decoded, confidence)
        if place is not None and times.get(place, 0) < most:
            if not 0 <= place < len(decoded):
                fail(
                    ValueRangeError, "go_back", place, f"a place 0 to {len(decoded) - 1}, or None",
                    "count decoded tokens from 0",
                )  # fmt: skip
            times[place] = times.get(place, 0) + 1
            made.back.append((place, decoded[place]))
            banned.setdefault(tuple(decoded[:place]), set()).add(decoded[place])
            del decoded[place:], confidence[place:]
            # The last token kept is run again: its scores choose the next.
            kept = start + place - 1
            cache.crop(kept - seen)
            seen = kept
            continue
        if token == end:
            break
    made.ids = torch.cat((ids, torch.tensor([decoded], dtype=ids.dtype, device=ids.device)), 1)
    return made
