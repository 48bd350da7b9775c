"""Signed weights sum to one in size, contain softmax, and subtract where softmax cannot."""

from __future__ import annotations

import torch

from regard.core.rule import Rule
from regard.core.weigh import Signed, Softmax, Weigh
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.attending import explicit
from regard.papers.shared.measure import gap
from regard.run.api import attend


def _subtraction_error(weigh: Weigh, steps: int = 400) -> float:
    """Train q and k of one head to give (x_a - x_b) / 2 from marked tokens; v and output are x."""
    marks = torch.eye(3)[torch.tensor([0, 1, 2, 2, 2, 2, 2, 2])]  # a, b, and six others
    query = torch.randn(1, 1, 1, 8, requires_grad=True)
    key = torch.randn(3, 8, requires_grad=True)
    learn = torch.optim.Adam([query, key], lr=0.05)
    loss = torch.zeros(())
    for _ in range(steps):
        x = torch.randn(256, 1, 8, 4)
        target = (x[:, :, :1] - x[:, :, 1:2]) / 2
        k = (marks @ key).expand(256, 1, 8, 8)
        out = attend(query.expand(256, 1, 1, 8), k, x, Rule(weigh=weigh), executor="reference")
        loss = (out - target).square().mean()
        learn.zero_grad()
        loss.backward()
        learn.step()
    return float(loss.detach())


@check("cog_attention")
def signed_weights() -> Claims:
    """Signed weights sum to one in size, contain softmax, and subtract where softmax cannot."""
    q, k, v = (torch.randn(2, 4, 33, 16) for _ in range(3))
    scores = q @ k.mT / 4
    weights = Signed().weights(scores, None, None)
    up, down = q.abs(), k.abs()
    softmax = explicit(up, down, v)
    positive = gap(attend(up, down, v, Signed()), softmax)
    negative = gap(attend(up, -down, v, Signed()), -softmax)
    dense = (torch.sign(scores) * torch.softmax(scores.abs(), -1)) @ v
    state = Signed().start(torch.zeros_like(v))
    for lo in range(0, 33, 7):
        state = Signed().update(state, scores[..., lo : lo + 7], None, v[:, :, lo : lo + 7])
    streaming = gap(Signed().finish(state).out, dense)
    fitted = max(_subtraction_error(Signed()) for _ in range(3))
    convex = min(_subtraction_error(Softmax()) for _ in range(3))
    yield claim(
        "sum |a| = 1", "distance of sums from 1", gap(weights.abs().sum(-1), torch.ones(2, 4, 33))
    ).within(2e-6, "1", because=FLOAT32)
    yield claim("with all scores positive", "difference of the output", positive).within(
        1e-6, "softmax", because=CATALOGUE
    )
    yield claim("with all negative", "difference of the output", negative).within(
        2e-6, "minus softmax of -p", because=FLOAT32
    )
    yield claim("a single one-head layer", "mean squared error, signed, worst of 3", fitted).below(
        1e-2, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("a single one-head layer", "mean squared error, softmax, best of 3", convex).above(
        0.1,
        "what a hull allows",
        because="the best convex answer, (x_a - mean) / 2, errs by over 0.1",
    )
    yield claim("streaming equals", "difference of tiles of 7", streaming).within(
        2e-6, "the dense form", because=FLOAT32
    )
