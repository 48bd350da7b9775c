"""The model of context maintenance and retrieval (CMR), fitted to heads.

Items are one-hot, a context drifts as they are studied, and an item recalls the context it came in:

    t_i = rho t_{i-1} + beta_enc e_i                    at study, |t_i| = 1
    t_in = (1 - gamma) e_i + gamma t_{i-1}, to length 1   what item i brings back
    t = rho' t_n + beta_rec t_in                        at recall, |t| = 1
    p(j) = softmax_j(sharpness  t_{j-1} . t)

With gamma = 0 recall goes forward alone, as induction heads do; with gamma = 1 it is the same both
ways (Howard and Kahana 2002; as a model of heads, Ji-An 2024).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


def recalled(
    beta_enc: Tensor, beta_rec: Tensor, gamma: Tensor, sharpness: Tensor, *, items: int, reach: int
) -> Tensor:
    """Return recall probabilities by lag [..., 2 reach + 1], normalized; parameters [...].

    Means are over cues in the middle of the list, all of whose lags are there.

    >>> one = torch.tensor(1.0)
    >>> profile = recalled(0.7 * one, one, 0 * one, 9 * one, items=20, reach=2)
    >>> int(profile.argmax()) - 2
    1
    """
    if items <= 2 * reach:
        fail(ValueRangeError, "items", items, f"more than {2 * reach}", "study more items")
    beta_enc, beta_rec, gamma, sharpness = (
        x[..., None, None] for x in torch.broadcast_tensors(beta_enc, beta_rec, gamma, sharpness)
    )
    # contexts[i] after i items [..., items + 1, items + 1]; the last axis is (start, items).
    rho = (1 - beta_enc**2).clamp_min(1e-12).sqrt()
    i = torch.arange(items + 1, dtype=beta_enc.dtype)[:, None]
    k = torch.arange(items + 1, dtype=beta_enc.dtype)
    drift = rho ** (i - k).clamp(min=0) * torch.where(k > 0, beta_enc, 1.0)
    contexts = torch.where(k <= i, drift, 0.0)
    own = torch.eye(items + 1, dtype=beta_enc.dtype)[1:]
    back = (1 - gamma) * own + gamma * contexts[..., :-1, :]
    back = back / back.norm(dim=-1, keepdim=True)
    along = (back * contexts[..., -1:, :]).sum(-1, keepdim=True)
    kept = (1 + beta_rec**2 * (along**2 - 1)).clamp_min(0).sqrt() - beta_rec * along
    now = kept * contexts[..., -1:, :] + beta_rec * back  # [..., cue, items + 1]
    p = (sharpness * now @ contexts[..., :-1, :].mT).softmax(-1)  # [..., cue, item]
    middle = torch.arange(reach, items - reach)
    lags = [p[..., middle, middle + lag].mean(-1) for lag in range(-reach, reach + 1)]
    profile = torch.stack(lags, -1)
    return profile / profile.sum(-1, keepdim=True)


@dataclass(frozen=True)
class FittedRecall:
    """A fitted model: its parameters, its profile, and the mean squared error to the head's."""

    beta_enc: float
    beta_rec: float
    gamma: float
    sharpness: float
    profile: Tensor
    distance: float


@method(
    "cmr_heads",
    call="import torch\n"
    "from regard.analysis.context_maintenance import fit_recall\n"
    "profile = torch.tensor([0.05, 0.05, 0.1, 0.6, 0.2])  # of LagProfile(reach=2)\n"
    "print(fit_recall(profile, items=20, steps=20).distance)",
)
def fit_recall(profile: Tensor, *, items: int = 50, steps: int = 300) -> FittedRecall:
    """Fit the model to the lag profile [2 reach + 1] of a head: a grid, descent, least squares.

    Adam descends from the best of the grid; damped Gauss-Newton steps (Levenberg-Marquardt) then
    separate parameters with similar effects. The distance is the mean squared error of profiles
    that sum to 1.

    >>> found = fit_recall(torch.tensor([0.02, 0.02, 0.06, 0.7, 0.2]), items=20, steps=100)
    >>> found.distance < 1e-3
    True
    """
    if profile.dim() != 1 or profile.shape[0] % 2 == 0:
        fail(
            ShapeError, "profile", shape_of(profile), "an odd number of lags, 0 in the middle",
            "pass one head's profile",
        )  # fmt: skip
    wanted = (profile / profile.sum()).double()
    reach = len(wanted) // 2
    ends, rates = (0.1, 0.3, 0.5, 0.7, 0.9), (0.5, 2.0, 5.0, 12.0, 30.0)
    grid = torch.tensor(list(itertools.product(ends, ends, (0.0, *ends, 1.0), rates)))
    grid = grid.double()
    with torch.no_grad():
        found = recalled(*grid.T, items=items, reach=reach)
        best = (found - wanted).square().mean(-1).topk(8, largest=False).indices
    start = grid[best]
    # Parameters in (0, 1) are optimized as logits, positive ones as logarithms.
    free = torch.cat([torch.logit(start[:, :3].clamp(0.01, 0.99)), start[:, 3:].log()], 1)
    free.requires_grad_()
    adam = torch.optim.Adam([free], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    lowest, at = torch.full((len(free),), torch.inf).double(), free.detach().clone()
    for _ in range(steps):
        p = torch.cat([free[:, :3].sigmoid(), free[:, 3:].exp()], 1)
        errors = (recalled(*p.T, items=items, reach=reach) - wanted).square().mean(-1)
        better = errors.detach() < lowest
        lowest = torch.where(better, errors.detach(), lowest)
        at = torch.where(better[:, None], free.detach(), at)
        adam.zero_grad()
        # In logarithms every start counts the same, and small errors still pull.
        (errors + 1e-12).log().sum().backward()
        adam.step()
        schedule.step()
    one = _least_squares(at[lowest.argmin()], wanted, items)
    p = torch.cat([one[:3].sigmoid(), one[3:].exp()])
    made = recalled(*p, items=items, reach=reach)
    enc, rec, gamma, sharpness = p.tolist()
    return FittedRecall(enc, rec, gamma, sharpness, made, float((made - wanted).square().mean()))


def _least_squares(free: Tensor, wanted: Tensor, items: int, steps: int = 40) -> Tensor:
    """Move parameters [4] by damped Gauss-Newton steps, none of which raises the error."""

    def missed(free: Tensor) -> Tensor:
        p = torch.cat([free[:3].sigmoid(), free[3:].exp()])
        return recalled(*p, items=items, reach=len(wanted) // 2) - wanted

    damp, now = 1e-3, missed(free)
    for _ in range(steps):
        slope = torch.autograd.functional.jacobian(missed, free)
        curve = slope.T @ slope
        curve = curve + torch.diag(damp * curve.diagonal() + 1e-12)
        tried = free - torch.linalg.solve(curve, slope.T @ now)
        there = missed(tried)
        if bool(there.square().sum() < now.square().sum()):
            free, now, damp = tried, there, damp / 5
        else:
            damp *= 4
    return free
