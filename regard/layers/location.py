"""Location-based attention: the alignment of a step depends on that of the step before.

So steps run one after another, and the memory keeps what is carried from step to step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.method import method
from regard.core.rule import Rule
from regard.layers.alignment import SourceAttention
from regard.layers.arguments import need_size
from regard.layers.inputs import LayerInput
from regard.layers.registry import register


class MovingAttention(SourceAttention):
    """A source attention whose steps run one after another; subclasses define `step`."""

    def begin(self, source: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the state before the first step; real [b, m] is true at source tokens."""
        raise NotImplementedError

    def step(
        self, state: Tensor, source: Tensor, real: Tensor, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return weights of the source [b, m] for one decoder state [b, dim], and the new state."""
        raise NotImplementedError

    def look(self, q: Tensor, source: Tensor, rule: Rule, input: LayerInput) -> Tensor:
        """Run the steps, and average the source by their weights."""
        valid = getattr(rule.support, "valid", None)
        b, m = source.shape[0], source.shape[2]
        real = valid if valid is not None else source.new_ones(b, m, dtype=torch.bool)
        carried = None if input.memory is None else input.memory.get("carried")
        if carried is None:
            carried = self.begin(source[:, 0], real)
        rows = []
        for t in range(q.shape[2]):
            weights, carried = self.step(q[:, 0, t], source[:, 0], real, carried)
            rows.append(weights)
        if input.memory is not None:
            input.memory.keep("carried", carried)
        return torch.stack(rows, 1)[:, None] @ source


@register("monotonic_location_attention")
@method(
    "monotonic_location_attention",
    call="import regard\n"
    'layer = regard.layer("monotonic_location_attention", 128, context_dim=128)',
)
class MonotonicLocation(MovingAttention):
    """A Gaussian whose center moves on along the source by learned steps, never back.

    `mu_t = (s relu(x) + (1 - s) sigmoid(5 x)) / (m - 1) + prev`, with `x = w h` and prev the mean
    position of the step before; width `sigma = (relu(u h) + 0.27) / m`. `content` mixes in
    attention by content, by a gate of the state.

    >>> layer = MonotonicLocation(8, context_dim=8)
    >>> layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def make(self, *, content: bool = False) -> None:
        """Build the parameters that move the center."""
        self.to_step = nn.Linear(self.dim, 1)
        self.to_width = nn.Linear(self.dim, 1)
        self.mixing = nn.Parameter(torch.tensor(20.0))
        self.content = content
        if content:
            self.to_q = nn.Linear(self.dim, self.context_dim, bias=False)
            self.to_gate = nn.Linear(self.dim, 1)

    def begin(self, source: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Start at the beginning of the source."""
        return {"mean": source.new_zeros(len(source), 1)}

    def moved(self, state: Tensor) -> Tensor:
        """Return how many positions to move on: [b, 1]."""
        x, s = self.to_step(state), self.mixing.sigmoid()
        moved: Tensor = s * x.relu() + (1 - s) * (5 * x).sigmoid()
        return moved

    def step(
        self, state: Tensor, source: Tensor, real: Tensor, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Move the Gaussian, and attend around it."""
        count = real.sum(1, keepdim=True).to(state.dtype)
        unit = 1 / (count - 1).clamp_min(1)
        places = torch.arange(real.shape[1], device=state.device) * unit
        center = self.moved(state) * unit + carried["mean"]
        inside = center.clamp(0, 1)
        center = inside + 0.01 * (center - inside)
        width = (self.to_width(state).relu() + 0.27) / count
        fall = -((places - center) / width).square() / 2
        weights = fall.masked_fill(~real, -torch.inf).softmax(-1)
        mean = (weights * places).sum(-1, keepdim=True)
        if self.content:
            match = (self.to_q(state)[:, None] @ source.mT)[:, 0] * self.context_dim**-0.5
            gate = self.to_gate(state).sigmoid()
            by_content = match.masked_fill(~real, -torch.inf).softmax(-1)
            weights = gate * weights + (1 - gate) * by_content
        return weights, {"mean": mean}


@register("one_step_location")
class OneStepLocation(MonotonicLocation):
    """Monotonic location attention that moves by at most one position a step, `sigmoid(5 x)`.

    A saturated step is exactly one, so long sources are followed to the end.

    >>> layer = OneStepLocation(8, context_dim=8)
    >>> layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def make(self, *, content: bool = False) -> None:
        """Build the parameters that move the center, without the mixing one."""
        super().make(content=content)
        del self.mixing

    def moved(self, state: Tensor) -> Tensor:
        """Return how far to move on: [b, 1]."""
        moved: Tensor = (5 * self.to_step(state)).sigmoid()
        return moved


def either_way(source: Tensor, forwards: Tensor, real: Tensor | None = None) -> Tensor:
    """Mix a source [b, m, c] with its reverse by a gate [b, 1]; padding stays at the end.

    >>> either_way(torch.tensor([[[1.0], [2.0], [0.0]]]), torch.zeros(1, 1),
    ...     torch.tensor([[True, True, False]])).flatten().tolist()
    [2.0, 1.0, 0.0]
    """
    m = source.shape[1]
    count = torch.tensor(m, device=source.device) if real is None else real.sum(1, keepdim=True)
    place = torch.arange(m, device=source.device)
    back = torch.where(place < count, count - 1 - place, place)
    flipped = source.gather(1, back[..., None].expand_as(source))
    return forwards[..., None] * source + (1 - forwards[..., None]) * flipped


@register("gmm_attention")
class GaussianMixture(MovingAttention):
    """A mixture of Gaussians that only move forward (GMM attention, version 2 with biases).

    `mu = mu_before + softplus(D)`, weights a softmax, `sigma = softplus(s)`, and each Gaussian is
    a density, so weights are not normalized over positions.

    >>> layer = GaussianMixture(8, context_dim=8, mixtures=2)
    >>> layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def make(self, *, mixtures: int = 5, hidden: int = 128) -> None:
        """Build the network of the mixture; steps start at 1 and widths at 10 positions."""
        need_size("mixtures", mixtures)
        self.mixtures = mixtures
        last = nn.Linear(hidden, 3 * mixtures)
        self.to_mixture = nn.Sequential(nn.Linear(self.dim, hidden), nn.Tanh(), last)
        start = torch.zeros(3, mixtures)
        start[1], start[2] = math.log(math.expm1(1.0)), math.log(math.expm1(10.0))
        with torch.no_grad():
            last.bias.copy_(start.flatten())

    def begin(self, source: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Start at the first position."""
        return {"mu": source.new_zeros(len(source), self.mixtures)}

    def step(
        self, state: Tensor, source: Tensor, real: Tensor, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Move the Gaussians, and sum their densities."""
        share, forward, width = self.to_mixture(state).chunk(3, -1)
        mu = carried["mu"] + F.softplus(forward)
        sigma = F.softplus(width).clamp_min(1e-3)
        away = torch.arange(real.shape[1], device=state.device)[:, None] - mu[:, None]
        density = torch.exp(-(away / sigma[:, None]).square() / 2)
        share = share.softmax(-1) / (math.sqrt(2 * math.pi) * sigma)
        weights = (density * share[:, None]).sum(-1) * real
        return weights, {"mu": mu}


@register("dca_gmm_attention")
@method(
    "dca_gmm_attention",
    call='import regard\nlayer = regard.layer("dca_gmm_attention", 128, context_dim=128)',
)
class DynamicConvolutionAttention(MovingAttention):
    """The last alignment, convolved: by fixed filters, by filters of the state, by a prior (DCA).

    `a_t = softmax(v tanh(U (F * a) + T (G(h) * a) + b) + log(P * a))`; P is causal, so the
    alignment moves forward, at most 10 positions, 1 on average.

    >>> layer = DynamicConvolutionAttention(8, context_dim=8)
    >>> layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    prior: Tensor

    def make(self, *, filters: int = 8, taps: int = 21, hidden: int = 128) -> None:
        """Build the filters, and the prior of beta-binomial steps."""
        need_size("filters", filters)
        need_size("taps", taps)
        self.static = nn.Parameter(torch.randn(filters, 1, taps) * taps**-0.5)
        self.to_filters = nn.Sequential(
            nn.Linear(self.dim, hidden), nn.Tanh(), nn.Linear(hidden, filters * taps, bias=False)
        )
        self.of_static = nn.Linear(filters, hidden, bias=False)
        self.of_dynamic = nn.Linear(filters, hidden)
        self.to_energy = nn.Linear(hidden, 1, bias=False)
        self.register_buffer("prior", beta_binomial(10, 0.1, 0.9), persistent=False)

    def begin(self, source: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Start with all weight on the first position."""
        first = source.new_zeros(len(source), source.shape[1])
        first[:, 0] = 1.0
        return {"weights": first}

    def step(
        self, state: Tensor, source: Tensor, real: Tensor, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Convolve the last alignment."""
        before, filters = carried["weights"], len(self.static)
        taps = self.static.shape[2]
        fixed = F.conv1d(before[:, None], self.static, padding=taps // 2)
        own = self.to_filters(state).view(-1, 1, taps)
        moved = F.conv1d(before[None], own, padding=taps // 2, groups=len(before))
        moved = moved.view(len(before), filters, -1)
        energy = torch.tanh(self.of_static(fixed.mT) + self.of_dynamic(moved.mT))
        reach = len(self.prior) - 1
        ahead = F.conv1d(F.pad(before[:, None], (reach, 0)), self.prior.flip(0)[None, None])[:, 0]
        scores = self.to_energy(energy)[..., 0] + ahead.clamp_min(1e-6).log()
        weights = scores.masked_fill(~real, -torch.inf).softmax(-1)
        return weights, {"weights": weights}


def beta_binomial(n: int, alpha: float, beta: float) -> Tensor:
    """Return the probabilities of 0 to n successes; the mean is `n alpha / (alpha + beta)`.

    >>> chances = beta_binomial(10, 0.1, 0.9)
    >>> round(float(chances.sum()), 4), round(float(chances @ torch.arange(11.0)), 4)
    (1.0, 1.0)
    """
    k = torch.arange(n + 1.0, dtype=torch.float64)

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    a, b = torch.tensor(alpha, dtype=k.dtype), torch.tensor(beta, dtype=k.dtype)
    choose = -torch.log(torch.tensor(n + 1.0)) - log_beta(n - k + 1, k + 1)
    return torch.exp(choose + log_beta(k + a, n - k + b) - log_beta(a, b)).float()
