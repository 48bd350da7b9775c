"""How scores become weights.

A weigh is written as four hooks. `start`, `update` and `finish` are its running form over tiles of
keys; `pull` is its backward, given what the whole row came to. Executors that stream are written
against these hooks, so every weigh has their speed and their gradients. `apply_sink` adds, once a
row, what belongs to no key (a sink).

Two families do the work: those that share out one unit of attention (`Normalised`), and those that
judge each key alone (`Summed`).
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.partial import Partial, finite, softmax
from regard.core.score.base import need_heads, need_number, need_tensor
from regard.core.value import Value, value

_LAPLACE_MEAN, _LAPLACE_DEVIATION = math.sqrt(0.5), math.sqrt(1 / (4 * math.pi))


class RunningState(NamedTuple):
    """State of a running form: `out` [b, h, n, e], with `top` and `total` [b, h, n] of the lse."""

    out: Tensor
    top: Tensor
    total: Tensor


class Weigh(Value):
    """From scores [b, h, n, m] to weights, whole or in tiles of keys."""

    # Whether parts simply add; then there is no lse.
    sums: ClassVar[bool] = False

    def start(self, out: Tensor) -> RunningState:
        """Begin with no key; `out` [b, h, n, e] gives shape, dtype and device."""
        top = torch.full(out.shape[:-1], -torch.inf, dtype=out.dtype, device=out.device)
        return RunningState(torch.zeros_like(out), top, torch.zeros_like(top))

    def update(
        self, state: RunningState, scores: Tensor, allowed: Tensor | None, v: Tensor
    ) -> RunningState:
        """Append a tile of keys: scores [b, h, n, m], v [b, h, m, e]."""
        raise NotImplementedError

    def finish(self, state: RunningState) -> Partial:
        """End the running form."""
        raise NotImplementedError

    def weights(self, scores: Tensor, allowed: Tensor | None, lse: Tensor | None) -> Tensor:
        """Weights of a tile of keys, given the lse of the whole row (None: this is the row)."""
        raise NotImplementedError

    def pull(
        self,
        scores: Tensor,
        weights: Tensor,
        d_weights: Tensor,
        lse: Tensor | None,
        d_row: Tensor | None,
    ) -> Tensor:
        """Return the gradient of the scores of a tile from that of its weights.

        `d_row` [b, h, n] is d_lse - sum(d_out * out): what every key of the row shares.
        """
        raise NotImplementedError

    def rows(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weights of whole rows, and their lse: by plain differentiable operations."""
        return self.weights(scores, allowed, None), None

    def whole(self, scores: Tensor, allowed: Tensor | None, v: Tensor) -> Partial:
        """Weigh whole rows, and sum their values: the meaning."""
        weights, lse = self.rows(scores, allowed)
        return Partial(weights @ v, lse)

    def apply_sink(self, partial: Partial) -> Partial:
        """Add what belongs to no key; done once, after all parts are merged."""
        return partial

    @property
    def has_sink(self) -> bool:
        """Whether `apply_sink` does anything."""
        return False

    def check(self, h: int) -> None:
        """Raise a `RegardError` if the weigh cannot serve h heads."""


def alive(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Return pairs that count: allowed, and not removed by a bias of -inf."""
    there = scores != -torch.inf
    return there if allowed is None else there & allowed


class Normalised(Weigh):
    """Weights sign(s) exp(strength(s)) / sum exp(strength(s))."""

    def strength(self, scores: Tensor) -> Tensor:
        """Return log of the weight before it is normalised."""
        return scores

    def sign(self, scores: Tensor) -> Tensor | None:
        """Sign of the weight; None where it is always positive."""
        return None

    def _masked(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        # Strength first, mask second: |-inf| would be +inf (the trap of signed attention).
        return self.strength(scores).masked_fill(~alive(scores, allowed), -torch.inf)

    def _signed(self, weights: Tensor, scores: Tensor) -> Tensor:
        sign = self.sign(scores)
        return weights if sign is None else weights * sign

    def rows(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalise each row."""
        masked = self._masked(scores, allowed)
        weights, lse = softmax(masked, -1)
        return self._signed(weights, scores), lse

    def weights(self, scores: Tensor, allowed: Tensor | None, lse: Tensor | None) -> Tensor:
        """Divide by all weight of the row."""
        if lse is None:
            return self.rows(scores, allowed)[0]
        masked = self._masked(scores, allowed)
        return self._signed(torch.exp(masked - finite(lse)[..., None]), scores)

    def update(
        self, state: RunningState, scores: Tensor, allowed: Tensor | None, v: Tensor
    ) -> RunningState:
        """Rescale what was there to the new top, and add the tile."""
        masked = self._masked(scores, allowed)
        top = torch.maximum(state.top, masked.amax(-1))
        old = torch.exp(state.top - finite(top))
        new = (masked - finite(top)[..., None]).exp_()
        total = state.total * old + new.sum(-1)
        out = state.out * old[..., None] + self._signed(new, scores).to(v.dtype) @ v
        return RunningState(out, top, total)

    def finish(self, state: RunningState) -> Partial:
        """Divide by the total."""
        some = state.total > 0
        total = torch.where(some, state.total, 1.0)
        lse = torch.where(some, finite(state.top) + torch.log(total), -torch.inf)
        return Partial(state.out / total[..., None], lse)

    def pull(
        self,
        scores: Tensor,
        weights: Tensor,
        d_weights: Tensor,
        lse: Tensor | None,
        d_row: Tensor | None,
    ) -> Tensor:
        """Return the softmax rule: w (dw - row), with the row term unsigned."""
        assert d_row is not None
        sign = self.sign(scores)
        if sign is None:
            return weights * (d_weights + d_row[..., None])
        # s changes |s| by its sign: d = sign (w dw + |w| row), and |w| = sign w.
        return weights * (sign * d_weights + d_row[..., None])


class Summed(Weigh):
    """Weights that judge each key alone: w = amount(s)."""

    sums: ClassVar[bool] = True

    def amount(self, scores: Tensor) -> Tensor:
        """Return the weight of a score."""
        raise NotImplementedError

    def slope(self, scores: Tensor) -> Tensor:
        """Return derivative of `amount`."""
        raise NotImplementedError

    def weights(self, scores: Tensor, allowed: Tensor | None, lse: Tensor | None) -> Tensor:
        """Judge each key alone."""
        dead = ~alive(scores, allowed)
        return self.amount(scores.masked_fill(dead, 0.0)).masked_fill(dead, 0.0)

    def update(
        self, state: RunningState, scores: Tensor, allowed: Tensor | None, v: Tensor
    ) -> RunningState:
        """Add the tile."""
        weights = self.weights(scores, allowed, None).to(v.dtype)
        return state._replace(out=state.out + weights @ v)

    def finish(self, state: RunningState) -> Partial:
        """There is nothing to divide by."""
        return Partial(state.out, None)

    def pull(
        self,
        scores: Tensor,
        weights: Tensor,
        d_weights: Tensor,
        lse: Tensor | None,
        d_row: Tensor | None,
    ) -> Tensor:
        """Multiply by the slope, where a key counts."""
        dead = scores == -torch.inf
        slope = self.slope(scores.masked_fill(dead, 0.0))
        return (d_weights * slope).masked_fill(dead, 0.0)


@value
class Softmax(Normalised):
    """Weights exp(s) / sum exp(s), possibly with a sink that takes weight and gives nothing.

    `plus_one` adds 1 to the sum; `sink` [h] or [1] is a learned logit that adds exp(sink).

    >>> Softmax(), Softmax(plus_one=True)
    (Softmax(), Softmax(plus_one=True))
    """

    plus_one: bool = False
    sink: Tensor | None = None
    _head_axis: ClassVar = {"sink": 0}

    def __post_init__(self) -> None:
        if self.sink is not None:
            need_tensor("sink", self.sink, "[h or 1]")
            if self.plus_one:
                fail(
                    RuleError,
                    "plus_one",
                    "True beside a sink",
                    "one of the two",
                    "a sink logit of 0 is plus one",
                )

    def _masked(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        # A score of -inf already is its own mask here, which saves a pass over the tile.
        return scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""
        return self.plus_one or self.sink is not None

    def apply_sink(self, partial: Partial) -> Partial:
        """Let the sink take its share: merge with a part of zeros and lse = sink."""
        if not self.has_sink:
            return partial
        out, lse = partial
        assert lse is not None
        share, sink = self.share_of_keys(lse), self._sink_of(lse, None).expand_as(lse)
        return Partial(out * share[..., None].to(out.dtype), torch.logaddexp(lse, sink))

    def share_of_keys(self, lse: Tensor, head: int | None = None) -> Tensor:
        """Return the share of each row that the sink leaves to keys.

        `lse` [b, h, n] is that of the keys; or [n], of one query head.

        >>> Softmax(plus_one=True).share_of_keys(torch.zeros(1, 1, 1)).item()
        0.5
        """
        return torch.sigmoid(lse - self._sink_of(lse, head))

    def _sink_of(self, lse: Tensor, head: int | None) -> Tensor:
        sink = lse.new_zeros(1) if self.sink is None else self.sink.to(lse)
        return sink.view(1, -1, 1) if head is None else sink[min(head, len(sink) - 1)]

    def check(self, h: int) -> None:
        """One sink, or one for each head."""
        if self.sink is not None:
            need_heads("sink", self.sink.shape[0], h)


@value
class Signed(Normalised):
    """Weights sign(s) exp(|s|) / sum exp(|s|): a key can be subtracted (Cog attention).

    >>> w = Signed().weights(torch.tensor([[[[-1.0, 1.0]]]]), None, None)
    >>> w.flatten().tolist()
    [-0.5, 0.5]
    """

    def strength(self, scores: Tensor) -> Tensor:
        """Both signs count alike."""
        return scores.abs()

    def sign(self, scores: Tensor) -> Tensor:
        """Return the sign of the score."""
        return scores.sign()


@value
class Sigmoid(Summed):
    """Weights sigmoid(s + bias); a bias of -log(keys) starts training where softmax would.

    >>> Sigmoid.for_length(1024).bias
    -6.931471805599453
    """

    bias: float = 0.0

    def __post_init__(self) -> None:
        need_number("bias", self.bias)

    @staticmethod
    def for_length(keys: int) -> Sigmoid:
        """Choose the bias for a number of keys."""
        if keys < 1:
            fail(ValueRangeError, "keys", shape_of(keys), "at least 1", "pass the usual length")
        return Sigmoid(-math.log(keys))

    def amount(self, scores: Tensor) -> Tensor:
        """Squash."""
        return torch.sigmoid(scores + self.bias)

    def slope(self, scores: Tensor) -> Tensor:
        """P (1 - p)."""
        p = self.amount(scores)
        return p * (1 - p)


@value
class Laplace(Summed):
    """Weights (1 + erf((s - mean) / (deviation sqrt 2))) / 2: a bounded squared ReLU (Mega).

    The mean sqrt(1/2) and the deviation sqrt(1 / (4 pi)) give s^2 its value and its slope at the
    mean.

    >>> round(float(Laplace().amount(torch.tensor(0.5**0.5))), 6)
    0.5
    """

    def amount(self, scores: Tensor) -> Tensor:
        """Accumulate a normal density."""
        z = (scores - _LAPLACE_MEAN) / _LAPLACE_DEVIATION
        return 0.5 * (1 + torch.erf(z / math.sqrt(2)))

    def slope(self, scores: Tensor) -> Tensor:
        """The density."""
        z = (scores - _LAPLACE_MEAN) / _LAPLACE_DEVIATION
        return torch.exp(-z.square() / 2) / (_LAPLACE_DEVIATION * math.sqrt(2 * math.pi))


@value
class Relu(Summed):
    """Weights scale max(s, 0)^power; a scale of 1/keys keeps the output's size.

    >>> Relu(2).amount(torch.tensor([-1.0, 3.0])).tolist()
    [0.0, 9.0]
    """

    power: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        need_number("scale", self.scale)
        if self.power not in (1, 2, 3):
            fail(ValueRangeError, "power", shape_of(self.power), "1, 2 or 3", "pass power=2")

    def amount(self, scores: Tensor) -> Tensor:
        """Rectify and raise."""
        return self.scale * scores.clamp(min=0) ** self.power

    def slope(self, scores: Tensor) -> Tensor:
        """Return derivative of the power, 0 below 0."""
        up = (scores > 0).to(scores.dtype)
        return self.scale * self.power * scores.clamp(min=0) ** (self.power - 1) * up
