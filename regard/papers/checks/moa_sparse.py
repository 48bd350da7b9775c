"""Effects are exact where the loss is linear, streamed as told; the far head gets the span."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.attending import CAUSAL
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.moa import MoASparse, span
from regard.policies.profiling import MaskingEffects, masking_effect
from regard.run.api import attend
from regard.run.reference import weight_matrix
from regard.run.survey import survey
from regard.verbs import shrink


def masked_one_by_one(loss: object, a: Tensor) -> Tensor:
    """Rise of a loss of weights [n, m] when each entry is masked and its row weighed anew."""
    assert callable(loss)
    found = torch.zeros_like(a)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            b = a.clone()
            b[i, j] = 0
            b[i] /= b[i].sum()
            found[i, j] = loss(b) - loss(a)
    return found


def effects_of(call: Call, goal: Tensor, size: int) -> Tensor:
    """Effects by distance [h, d] on a loss that falls with out . goal."""
    effects = MaskingEffects(call, -goal, size)
    survey(call.q, call.k, call.v, call.rule, want=(), reducers=[effects])
    return effects.found[0]


@check(
    "moa_sparse",
    beyond=(
        "quality at scale, and times; on the model that ships it does not beat one window for "
        "all (docs/shrink.md)"
    ),
)
def moa() -> Claims:
    """Effects are exact where the loss is linear, streamed as told; the far head gets the span."""
    a = torch.softmax(2 * torch.randn(12, 12, dtype=torch.double), -1)
    v, goal = torch.randn(12, 4, dtype=torch.double), torch.randn(12, 4, dtype=torch.double)

    def linear(x: Tensor) -> Tensor:
        return (x @ v * goal).sum()

    def bent(x: Tensor) -> Tensor:
        return torch.tanh(x @ v).sub(goal).square().sum()

    def told(loss: object) -> Tensor:
        assert callable(loss)
        x = a.clone().requires_grad_(True)
        (pull,) = torch.autograd.grad(loss(x), x)
        return masking_effect(a, pull, (a * pull).sum(-1, keepdim=True))

    exact = float((told(linear) - masked_one_by_one(linear, a)).abs().max())
    found, true = told(bent), masked_one_by_one(bent, a)
    small = a < 0.1  # because: where a first-order effect is near
    near = float(torch.corrcoef(torch.stack((found[small], true[small])))[0, 1])
    every = float(torch.corrcoef(torch.stack((found.flatten(), true.flatten())))[0, 1])

    # One head looks 400 tokens back, three fade over 20 tokens.
    n, block = 512, 32
    q, k = torch.zeros(1, 4, n, 64), torch.zeros(1, 4, n, 64)
    walk = torch.randn(n, 64)
    k[:, 0] = walk
    q[:, 0, 400:] = 4 * walk[: n - 400]
    q[:, 1:, :, 0], k[:, 1:, :, 0] = 8.0, torch.arange(n) / 20
    call = Call.of(q.double(), k.double(), torch.randn(1, 4, n, 16).double(), CAUSAL)
    goal_ = attend(call.q, call.k, call.v, CAUSAL).clone()
    goal_[:, 0, :400] = 0  # before that the far head sees nothing it looks for
    streamed = effects_of(call, goal_, block)
    weights = weight_matrix(call)[0]
    pull = -goal_ @ call.v.transpose(2, 3)
    whole = masking_effect(weights, pull, (weights * pull).sum(-1, keepdim=True))
    apart = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0) // block
    dense = torch.stack([whole[0, :, apart == x].sum(1) for x in range(n // block)], 1)
    off = float((streamed - dense).abs().max() / dense.abs().max())
    made: Any = llama()
    ids = torch.randint(3, 64, (1, 60))
    every_rule = MoASparse(sinks=0, block=block, alphas=(64,))
    every_rule.take({"plans": {}, "profile": {64: {s: torch.rand(4, 2) for s in range(4)}}})
    with torch.no_grad():
        plain = made(ids).logits
        with shrink(made, every_rule, keep=1.0, check=False):
            dense_rule = gap(made(ids).logits, plain)
    policy = MoASparse(sinks=0, block=block, alphas=(0, 64, 128, 256))
    policy.take({"plans": {}, "profile": {n: {0: streamed}}})
    spans = [span(x, n, policy.block) for x in policy.planned(0.35)[0][0]]
    yield claim("For a loss linear", "largest difference", exact).within(
        1e-9, "zeroing and renormalizing, one by one", because=FLOAT64
    )
    yield claim("for a nonlinear loss", "correlation where A < 0.1", near).above(
        0.9, "at small A", because="the catalogue saw 0.91 over all entries"
    )
    yield claim("for a nonlinear loss", "correlation over all entries", every).above(
        0.85, "the catalogue saw 0.91", because="within the spread of 144 entries"
    )
    yield claim("Dense rule equals", "logits equal at a budget of everything", dense_rule).within(
        1e-4, "the base model", because=FLOAT32
    )
    yield claim("One long head", "span of the long head at 35%", spans[0]).above(
        400, "its distance", because="the planted one"
    )
    yield claim("One long head", "largest span of the others", max(spans[1:])).at_most(
        128, "a quarter of the text", because="their weight fades over 20 tokens"
    )
    yield claim("For a loss linear", "difference of the streamed pass", off).within(
        1e-4, "sums over the matrix", because=FLOAT32
    )
