"""Attention among points that depends on their relative pose alone (LieTransformer)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method
from regard.core.score.dense import DenseBias
from regard.core.support import Padding
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import LayerInput, need_rows

# The branch cut of angles is this far from pi, in radians.
CUT = 1e-4


def lift(points: Tensor, turns: Tensor) -> Tensor:
    """Lift points [b, n, 2] to elements of SE(2), one for each angle of `turns` [s]: [b, n s, 3].

    An element is (x, y, angle). With `torch.zeros(1)` it is a translation alone. Evenly spaced
    angles are a set that rotation by one of them maps to itself.

    >>> lift(torch.zeros(1, 4, 2), torch.arange(3.0)).shape
    torch.Size([1, 12, 3])
    """
    if points.dim() != 3 or points.shape[2] != 2:
        fail(ShapeError, "points", shape_of(points), "[b, n, 2]", "pass x and y of each point")
    wide = points[:, :, None].expand(-1, -1, len(turns), -1)
    angles = turns[:, None].expand(*wide.shape[:3], 1)
    return torch.cat((wide, angles.to(points)), -1).flatten(1, 2)


def moved(g: Tensor, by: Tensor) -> Tensor:
    """Move elements g [b, n, 3] by one element [3]: the product `by g`.

    >>> moved(torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([0.0, 0.0, math.pi])).round()
    tensor([[[-1., -0.,  3.]]])
    """
    x, y, angle = by
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack((cos * g[..., 0] - sin * g[..., 1], sin * g[..., 0] + cos * g[..., 1]), -1)
    return torch.cat((turned + torch.stack((x, y)), g[..., 2:] + angle), -1)


def logarithms(g: Tensor) -> Tensor:
    """Return the logarithm of each `g_i^-1 g_j`: [b, n, 3] to [b, n, n, 3].

    It does not depend on the choice of an origin. Angles are between -pi and pi; pi itself, which
    has two logarithms, counts as positive.
    """
    apart = g[:, None, :, :2] - g[:, :, None, :2]
    cos, sin = g[:, :, None, 2].cos(), g[:, :, None, 2].sin()
    x = cos * apart[..., 0] + sin * apart[..., 1]
    y = -sin * apart[..., 0] + cos * apart[..., 1]
    angle = g[:, None, :, 2] - g[:, :, None, 2]
    # The cut is just short of pi, so that rounding does not choose a side.
    angle = torch.remainder(angle + math.pi - CUT, 2 * math.pi) - math.pi + CUT
    half = angle / 2
    # half / tan(half), which is 1 where the angle is 0.
    near = half.abs() < 1e-4
    safe = torch.where(near, torch.ones_like(half), half)
    ratio = torch.where(near, 1 - half.square() / 3, safe / safe.tan())
    return torch.stack((ratio * x + half * y, -half * x + ratio * y, angle), -1)


class LieAttention(Attention):
    """Attention among group elements: content, plus a network of their relative pose.

    `s_ij = q_i k_j / sqrt(d) + MLP(log(g_i^-1 g_j))`. It is invariant to moving all elements by
    one. Call `among` with features [b, n, dim] and elements [b, n, 3]; `reach` limits attention to
    near neighbors.

    >>> layer = LieAttention(16, heads=2)
    >>> layer.among(torch.randn(1, 5, 16), torch.randn(1, 5, 3)).shape
    torch.Size([1, 5, 16])
    """

    def __init__(
        self, dim: int, heads: int, *, hidden: int = 16, reach: float | None = None, **settings: Any
    ) -> None:
        need_size("hidden", hidden)
        super().__init__(dim, heads, **settings)
        self.reach = reach
        self.of_place = nn.Sequential(nn.Linear(3, hidden), nn.SiLU(), nn.Linear(hidden, heads))

    def among(self, x: Tensor, g: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend among elements g [b, n, 3] with features x [b, n, dim]."""
        if list(g.shape) != [*x.shape[:2], 3]:
            fail(
                ShapeError, "g", shape_of(g), f"[{x.shape[0]}, {x.shape[1]}, 3]",
                "pass an element for each feature: lift(points, turns)",
            )  # fmt: skip
        between = logarithms(g)
        bias = self.of_place(between).permute(0, 3, 1, 2)
        if self.reach is not None:
            far = between.norm(dim=-1) > self.reach
            bias = bias.masked_fill(far[:, None], -torch.inf)
        rule = self.rule()
        rule = rule.replace(score=rule.score + DenseBias(bias))
        if padding is not None:
            rule = rule.replace(support=rule.support & Padding(padding))
        input = LayerInput(x, x, False, torch.arange(x.shape[1], device=x.device), padding=padding)
        return self.mix(self.look(Call.of(self.queries(x), *self.keys(x), rule), input), input)


@method(
    "lie_transformer",
    call="import torch, regard\nfrom regard.layers.lie import LieTransformer, lift\n"
    "model = LieTransformer(features=3, dim=64, heads=4, out=1)\n"
    "out = model(torch.randn(2, 10, 3), torch.randn(2, 10, 2))",
)
class LieTransformer(nn.Module):
    """Attention over a set of points, invariant to its translation and rotation.

    Points [b, n, 2] with features [b, n, c] are lifted to `turns` elements of SE(2) each (1: to
    translations alone), blocks attend among them, and the mean over all is mapped to [b, out]. Sets
    of different sizes are padded: `padding` [b, n] is true at real points.

    >>> model = LieTransformer(features=3, dim=16, heads=2, out=2, turns=4)
    >>> model(torch.randn(1, 5, 3), torch.randn(1, 5, 2)).shape
    torch.Size([1, 2])
    """

    turns: Tensor

    def __init__(
        self, *, features: int, dim: int, heads: int, out: int, layers: int = 2, turns: int = 1,
        reach: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, x in (("features", features), ("out", out), ("layers", layers), ("turns", turns)):
            need_size(name, x)
        self.register_buffer("turns", 2 * math.pi * torch.arange(turns) / turns, persistent=False)
        self.enter = nn.Linear(features, dim)
        self.mixers = nn.ModuleList(LieAttention(dim, heads, reach=reach) for _ in range(layers))
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers))
        self.leave = nn.Linear(dim, out)

    def elements(self, f: Tensor, g: Tensor, padding: Tensor | None = None) -> Tensor:
        """Map input features f [b, n, c] of elements g [b, n, 3] to features [b, n, dim]."""
        x: Tensor = self.enter(f)
        for i, mixer in enumerate(self.mixers):
            assert isinstance(mixer, LieAttention)
            x = x + mixer.among(self.norms[2 * i](x), g, padding)
            x = x + self.maps[i](self.norms[2 * i + 1](x))
        return x

    def forward(self, f: Tensor, points: Tensor, padding: Tensor | None = None) -> Tensor:
        """Read points [b, n, 2] with features f [b, n, c]: [b, out]."""
        need_rows("padding", padding, f, (torch.bool,))
        if padding is not None:
            f = f.masked_fill(~padding[..., None], 0)
            points = points.masked_fill(~padding[..., None], 0)
            padding = padding.repeat_interleave(len(self.turns), dim=1)
        g = lift(points, self.turns)
        wide = f.repeat_interleave(len(self.turns), dim=1)
        out: Tensor = self.leave(real_mean(self.elements(wide, g, padding), padding))
        return out


def real_mean(x: Tensor, padding: Tensor | None) -> Tensor:
    """Average x [b, n, c] over the real elements: [b, c].

    >>> real_mean(torch.tensor([[[2.0], [9.0]]]), torch.tensor([[True, False]]))
    tensor([[2.]])
    """
    if padding is None:
        return x.mean(1)
    real = padding[..., None].to(x)
    return (x * real).sum(1) / real.sum(1).clamp_min(1)
