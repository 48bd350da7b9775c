"""Feature maps: functions `phi` that let `phi(q) . phi(k)` stand for a score's exponential.

With them attention is a scan: `scan(phi(q), phi(k), v, normalize=1e-6)`. Every map works on the
last dimension, `[..., d]` to `[..., f]`, and knows nothing of heads or tokens.

| map | size `f` | `phi(q) . phi(k)` |
|---|---|---|
| `identity` | d | `q . k` |
| `unit` | d | the cosine of q and k |
| `elu_plus_one`, `relu`, `relu_power` | d | positive, no special meaning |
| `softmax_features`, `softmax_pairs` | d, 2 d | overlap of two distributions over channels |
| `taylor` | 1 + d + d (d + 1) / 2 | `1 + q.k + (q.k)^2 / 2`, the exponential's first terms |
| `exponential` | d | log-normal, its spread set by `matched_rates` |
| `PositiveFeatures`, `FourierFeatures` | m, 2 m | unbiased estimates of `exp(q . k)` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of


def identity(x: Tensor) -> Tensor:
    """Leave `x` as it is, as retention and gated linear attention do.

    >>> identity(torch.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    """
    return x


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale each vector to length 1, so that scores are cosines and delta rules are stable.

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    units: Tensor = x / length.clamp_min(eps)
    return units


def standardized(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalize the entries of each vector to mean 0 and standard deviation 1.

    >>> standardized(torch.tensor([1.0, 3.0]))
    tensor([-1.,  1.])
    """
    centered = x - x.mean(-1, keepdim=True)
    return centered / centered.square().mean(-1, keepdim=True).clamp_min(eps * eps).sqrt()


def elu_plus_one(x: Tensor) -> Tensor:
    """Return `elu(x) + 1`: positive, with a gradient on both sides of zero.

    >>> elu_plus_one(torch.tensor([0.0, 2.0]))
    tensor([1., 3.])
    """
    # exp(x) directly below zero: elu(x) + 1 would cancel to 0 there.
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def relu(x: Tensor) -> Tensor:
    """Return the positive part.

    >>> relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    return F.relu(x)


def relu_power(x: Tensor, power: float = 3.0) -> Tensor:
    """Raise the positive part to a power and keep its length: sharper, and not larger.

    >>> relu_power(torch.tensor([3.0, 4.0, -1.0]), power=1.0)
    tensor([3., 4., 0.])
    """
    if not power >= 1:
        fail(ValueRangeError, "power", power, "a number of at least 1", "use 2 or 3")
    positive = F.relu(x)
    # Divided by its largest entry first, so that no power overflows.
    largest = positive.amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    sharp = (positive / largest).pow(power)
    # The largest entry of `sharp` is 1, or all are 0: a length of at least 1 changes neither.
    length = torch.linalg.vector_norm(sharp, dim=-1, keepdim=True).clamp_min(1.0)
    sharpened: Tensor = sharp * torch.linalg.vector_norm(positive, dim=-1, keepdim=True) / length
    return sharpened


def softmax_features(x: Tensor) -> Tensor:
    """Turn each vector into a distribution over its channels.

    >>> softmax_features(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return x.softmax(-1)


def softmax_pairs(x: Tensor) -> Tensor:
    """Build distributions over the channels of `x` and of `-x`: `[..., d]` to `[..., 2 d]`.

    >>> softmax_pairs(torch.zeros(2))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    return torch.cat((x.softmax(-1), (-x).softmax(-1)), dim=-1)


def taylor(x: Tensor, order: int = 2) -> Tensor:
    """Write the exponential's first terms as a product: `[..., d]` to `[..., f]`.

    `phi(q) . phi(k) = 1 + q.k + (q.k)^2 / 2` for order 2 (positive for every q and k), and
    `1 + q.k` for order 1 (which can be negative). Of the symmetric square only one half is kept,
    so `f = 1 + d + d (d + 1) / 2`. Give q and k a factor `d ** -0.25` each for scaled scores.

    >>> q, k = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])
    >>> taylor(q) @ taylor(k)  # 1 + 1 + 1/2
    tensor(2.5000)
    """
    if order not in (1, 2):
        fail(ValueRangeError, "order", order, "1 or 2", "use 2, whose weights are positive")
    parts = [torch.ones_like(x[..., :1]), x]
    if order == 2:
        d = x.shape[-1]
        row, column = torch.triu_indices(d, d, device=x.device)
        # Off the diagonal each product stands for two equal ones: sqrt(2) / sqrt(2) = 1.
        weight = torch.where(row == column, x.new_tensor(math.sqrt(0.5)), x.new_tensor(1.0))
        parts.append(x[..., row] * x[..., column] * weight)
    return torch.cat(parts, dim=-1)


def exponential(x: Tensor, alpha: float | Tensor = 1.0, beta: float | Tensor = 0.0) -> Tensor:
    """Return `exp(alpha x + beta)`: sums of such products are close to log-normal.

    `beta` only stabilizes: it cancels in a normalized scan when it is one number per query for q
    and one number per head for k (such as minus the largest `alpha k`). For a scan in segments it
    must be the same in all of them.

    >>> exponential(torch.tensor([0.0, 1.0]), alpha=2.0, beta=-2.0)
    tensor([0.1353, 1.0000])
    """
    return torch.exp(alpha * x + beta)


def matched_rates(
    q: Tensor, k: Tensor, slope: float = 0.1486, offset: float = -0.3549
) -> tuple[Tensor, Tensor]:
    """Find the `alpha` of q and of k at which log-weights spread as much as softmax's do.

    The variance of softmax's log-weights is `var(q) var(k)`; that of the exponential map's is
    about `slope (alpha_q^2 var(q) + alpha_k^2 var(k)) + offset`, a fit for head size 64. Equal
    shares for q and k give the rates (`lln_attention`). Measured over the whole tensor and
    without gradient; freeze them for decoding, or outputs change with the length.

    >>> q = torch.tensor([1.0, -1.0])
    >>> alpha_q, alpha_k = matched_rates(q, 2 * q)
    >>> bool(torch.isclose(alpha_q, 2 * alpha_k))
    True
    """
    with torch.no_grad():
        spread_q, spread_k = (x.float().std(correction=0) for x in (q, k))
        spread = ((spread_q.square() * spread_k.square() - offset) / (2 * slope)).sqrt()
        tiny = torch.finfo(torch.float32).tiny
        rates = spread / spread_q.clamp_min(tiny), spread / spread_k.clamp_min(tiny)
        return rates[0].to(q.dtype), rates[1].to(k.dtype)


@dataclass(frozen=True, eq=False)
class PositiveFeatures:
    """Estimate `exp(q . k)` by random positive features, `exp(w . x - |x|^2 / 2) / sqrt(m)`.

    `directions [m, d]`, from `draw`. Positive, so a running normalizer never vanishes.

    >>> maps = PositiveFeatures(draw(64, 4096, generator=torch.Generator().manual_seed(0)))
    >>> q = torch.full((64,), 0.1)
    >>> bool(((maps(q) @ maps(q)) / torch.exp(q @ q) - 1).abs() < 0.1)
    True
    """

    directions: Tensor

    def __call__(self, x: Tensor, shift: float | Tensor = 0.0) -> Tensor:
        """Map `[..., d]` to `[..., m]`; `shift` is subtracted in the exponent, for range."""
        _check_width(x, self.directions)
        m = self.directions.shape[0]
        exponent = x @ self.directions.to(x).mT - x.square().sum(-1, keepdim=True) / 2 - shift
        weight: Tensor = exponent.exp() / math.sqrt(m)
        return weight


@dataclass(frozen=True, eq=False)
class FourierFeatures:
    """Estimate `exp(q . k)` by random sines and cosines, `exp(|x|^2 / 2) (cos, sin) / sqrt(m)`.

    `directions [m, d]`, from `draw`. Less noisy than positive features where q is near k, and
    useless where the true weight is small; weights can be negative.

    >>> maps = FourierFeatures(draw(64, 256, generator=torch.Generator().manual_seed(0)))
    >>> q = torch.full((64,), 0.1)
    >>> bool(((maps(q) @ maps(q)) / torch.exp(q @ q) - 1).abs() < 1e-5)  # exact where q is k
    True
    """

    directions: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[..., d]` to `[..., 2 m]`."""
        _check_width(x, self.directions)
        angle = x @ self.directions.to(x).mT
        size = (x.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(angle.shape[-1])
        return torch.cat((angle.cos(), angle.sin()), dim=-1) * size


def draw(d: int, features: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw random directions `[features, d]`, normal each, and orthogonal in blocks of d.

    Orthogonal directions cover space more evenly, so the estimate varies less.

    >>> directions = draw(4, 6, generator=torch.Generator().manual_seed(0))
    >>> directions.shape, bool((directions[0] @ directions[1]).abs() < 1e-5)
    (torch.Size([6, 4]), True)
    """
    if d < 1 or features < 1:
        fail(ValueRangeError, "features", (d, features), "sizes of at least 1", "use d features")
    blocks = []
    for _ in range(-(-features // d)):
        frame, upper = torch.linalg.qr(torch.randn(d, d, generator=generator))
        # The sign makes the frame uniform over all rotations and reflections.
        blocks.append(frame * upper.diagonal().sign())
    frames = torch.cat([block.mT for block in blocks])[:features]
    lengths = torch.randn(features, d, generator=generator).norm(dim=-1, keepdim=True)
    directions: Tensor = frames * lengths
    return directions


def _check_width(x: Tensor, directions: Tensor) -> None:
    if x.shape[-1] != directions.shape[-1]:
        want = f"a last dimension of {directions.shape[-1]}, as the directions have"
        fail(ShapeError, "x", shape_of(x), want, "draw directions for this head size")
