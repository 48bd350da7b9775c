"""DAGCD: raise context tokens that heads use where the model is uncertain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.controls.base import Control, checked
from regard.controls.edit import AttentionEdit
from regard.controls.receipt import Fired
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.steering_hooks import row_on
from regard.controls.strength import strength_of
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import TokenSet
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


class UseDetector(NamedTuple):
    """Heads that predict which context token is used: (layer, head), their weights, and a bias."""

    heads: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    bias: float


def ratios(row: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return unique ids [u], and how much of each head's weight is on each, [heads, u].

    `row` [heads, context] are weights of one query on the tokens `ids` [context]; occurrences of
    an id are averaged, and the numbers of each head sum to one.

    >>> ratios(torch.tensor([[0.2, 0.1, 0.4]]), torch.tensor([5, 7, 5]))[1].tolist()
    [[0.75, 0.25]]
    """
    unique, inverse = ids.unique(return_inverse=True)
    sums = row.new_zeros(row.shape[0], len(unique)).index_add_(1, inverse, row)
    means = sums / torch.bincount(inverse).to(row)
    return unique, means / means.sum(1, keepdim=True).clamp(min=1e-12)


def train_use_detector(
    features: Tensor, used: Tensor, heads: Sequence[tuple[int, int]], *, many: int = 10
) -> UseDetector:
    """Train on ratios [n, heads] of tokens that were used (bool [n]) or not.

    Fits a logistic regression on all heads, keeps the `many` heads with the largest weights, and
    fits it on these again.
    """
    if features.dim() != 2 or used.shape != features.shape[:1] or len(heads) != features.shape[1]:
        fail(
            ShapeError, "features", f"{shape_of(features)} for {len(heads)} heads",
            "[n, heads] with a label for each", "name the head of each feature",
        )  # fmt: skip
    if bool(used.all()) or not bool(used.any()):
        fail(ValueRangeError, "used", "labels of one kind", "both kinds", "collect both")
    weights, _ = _logistic(features.float(), used.float())
    kept = weights.topk(min(many, len(heads))).indices
    weights, bias = _logistic(features.float()[:, kept], used.float())
    return UseDetector(tuple(heads[i] for i in kept.tolist()), tuple(weights.tolist()), float(bias))


def _logistic(x: Tensor, y: Tensor, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    scale = x.std(0).clamp(min=1e-6)
    w = torch.zeros(x.shape[1], requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = (x / scale) @ w + b
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, y)
        loss = loss + decay * w.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (w / scale).detach(), b.detach()


def guided(scores: Tensor, used: Tensor, tokens: Tensor, strength: float) -> Tensor:
    """Return P + strength H U: P = softmax(scores) [v], H its entropy / log v, U the used tokens.

    `used` [u] are weights of the ids `tokens` [u], normalized to sum to one. P is unchanged where
    no token is used, or its entropy is 0.

    >>> p = guided(torch.zeros(2), torch.tensor([1.0]), torch.tensor([1]), 1.0)
    >>> p.tolist()
    [0.5, 1.5]
    """
    p = scores.softmax(-1)
    total = used.sum()
    if not strength or float(total) <= 0:
        return p
    entropy = -(p * p.clamp(min=1e-38).log()).sum() / math.log(len(p))
    return p.index_add(0, tokens, strength * entropy * used / total)


class _Guide:
    """A logits processor that changes scores of the next token by the rows of the heads."""

    def __init__(self, control: ContextGuided, steering: Any) -> None:
        self.control, self.steering = control, steering

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        control, made = self.control, scores.clone()
        for b in range(len(ids)):
            row, tokens = row_on(self.steering, control.which, control.heads, b)
            unique, share = ratios(row, tokens)
            w = torch.tensor(control.weights)
            logit = share.T @ w + control.bias
            rank = (scores[b][None] > scores[b][unique][:, None]).sum(1)
            used = torch.where((logit > 0) & (rank < control.top), share.T @ w.abs(), 0.0)
            if int(scores[b].argmax()) in control.skip:
                continue
            new = guided(scores[b].float(), used, unique, control.number)
            if not torch.equal(new, scores[b].float().softmax(-1)):
                made[b] = new.log()
        moved = float((made.softmax(-1) - scores.softmax(-1)).abs().sum(-1).max() / 2)
        if moved > 0:
            step = ids.shape[1] - (self.steering.prompt.length or 0)
            self.steering.receipt.calls.append(Fired(None, step, 1, step == 0, (), moved=moved))
        return made


@register("context_guided", "dagcd")
@method(
    "dagcd",
    call="from regard.controls.context_guided import ContextGuided, train_use_detector\n"
    "found = train_use_detector(features, used, heads)\n"
    "regard.steer(model, ContextGuided(context, *found), tokenizer=tokenizer)",
)
@value
class ContextGuided(Control):
    """Raise the probability of context tokens that heads use, in proportion to uncertainty.

    P + strength H U: H is the normalized entropy of P, U the share of each token of the context
    `which` that the heads use, among the `top` tokens of P. `heads`, `weights` and `bias` come
    from `train_use_detector`. 0 changes nothing; tokens in `skip` are never replaced. It acts in
    `generate`. (DAGCD, Huang et al. 2025)

    >>> ContextGuided([1, 2], ((0, 1),), (3.0,)).number
    2.0
    """

    which: TokenSet
    heads: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    bias: float = 0.0
    strength: float = 2.0
    top: int = 10
    skip: tuple[int, ...] = ()
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 0.0
    needs_rows: ClassVar[bool] = True
    models: ClassVar[str] = "decoding"

    def __post_init__(self) -> None:
        object.__setattr__(self, "which", token_set(self.which))
        object.__setattr__(self, "heads", tuple(tuple(x) for x in self.heads))
        object.__setattr__(self, "weights", tuple(float(x) for x in self.weights))
        if not self.heads or len(self.heads) != len(self.weights):
            fail(
                ValueRangeError, "heads", f"{len(self.heads)} heads, {len(self.weights)} weights",
                "a weight for each of some heads", "train them: train_use_detector",
            )  # fmt: skip
        strength_of(self.strength, 0.0)
        object.__setattr__(self, "strength", float(self.strength))
        checked(self)

    @property
    def number(self) -> float:
        """Return the strength as a number."""
        return self.strength

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Return no edits: attention is only read."""
        return ()

    def processors(self, steering: Any) -> Sequence[Any]:
        """Return the processor that changes the scores of each next token."""
        return () if self.is_neutral else (_Guide(self, steering),)
