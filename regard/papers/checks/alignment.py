"""Checks of rows in which a decoder looks along its source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.alignment import (
    GlobalAlignment,
    MonotonicAlignment,
    PredictedAlignment,
    SourceAttention,
)
from regard.layers.conditioned import AffinePooling, ConditionedPooling, GatedPooling
from regard.layers.location import (
    DynamicConvolutionAttention,
    GaussianMixture,
    MonotonicLocation,
    OneStepLocation,
    beta_binomial,
    either_way,
)
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit


class Copier(nn.Module):
    """Write the source again, token by token: a decoder that counts, and a source attention.

    The decoder is a GRU fed with what it wrote last; the source is embedded, and read by another
    GRU where it `encodes`.
    """

    def __init__(self, attention: SourceAttention, words: int = 8, encodes: bool = False) -> None:
        super().__init__()
        dim = attention.dim
        self.encoder = nn.GRU(dim, dim, batch_first=True) if encodes else None
        self.words = nn.Embedding(words + 1, dim)
        self.decoder = nn.GRU(dim, dim, batch_first=True)
        self.attention, self.last = attention, nn.Linear(dim, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Score each target token given the ones before it: [b, n, words]."""
        before = F.pad(target[:, :-1] + 1, (1, 0))
        states, _ = self.decoder(self.words(before))
        seen = self.words(source + 1)
        if self.encoder is not None:
            seen, _ = self.encoder(seen)
        scores: Tensor = self.last(self.attention(states, seen))
        return scores


def trained(
    attention: SourceAttention, lengths: tuple[int, int], steps: int, *, encodes: bool = False
) -> Copier:
    """Train a copier on sources of these lengths."""
    copier = Copier(attention, encodes=encodes)

    def loss() -> Tensor:
        source = torch.randint(0, 8, (32, int(torch.randint(*lengths, ()))))
        return F.cross_entropy(copier(source, source).flatten(0, 1), source.flatten())

    fit(copier.parameters(), loss, steps, 1e-2)
    return copier


@torch.no_grad()
def copied(copier: Copier, length: int, rows: int = 64) -> float:
    """Share of tokens that are copied right at a length."""
    source = torch.randint(0, 8, (rows, length))
    return float((copier(source, source).argmax(-1) == source).float().mean())


@check("luong_attention")
def luong() -> Measured:
    """Kinds of alignment meet where they should, and a window of one is enough to copy."""
    x, source = torch.randn(2, 6, 16), torch.randn(2, 9, 16)
    dot = GlobalAlignment(16, context_dim=16, matching="dot")
    general = GlobalAlignment(16, context_dim=16)
    general.load_state_dict(dot.state_dict(), strict=False)
    with torch.no_grad():
        general.weight.copy_(torch.eye(16)[None])
    identity = gap(general(x, source), dot(x, source))
    wide = MonotonicAlignment(16, context_dim=16, reach=20, matching="dot")
    wide.load_state_dict(dot.state_dict())
    whole = gap(wide(x, source), dot(x, source))
    far = PredictedAlignment(16, context_dim=16, reach=10**4, matching="dot")
    far.load_state_dict(dot.state_dict(), strict=False)
    soft = gap(far(x, source), dot(x, source))
    near = PredictedAlignment(16, context_dim=16, reach=4, matching="dot")
    near(x, source).sum().backward()
    reaches = float(near.to_place[2].weight.grad.abs().max())
    torch.manual_seed(0)
    copier = trained(MonotonicAlignment(32, context_dim=32, reach=1), (8, 13), 400, encodes=True)
    right = copied(copier, 12)
    correlation = _reversal()
    return Measured(
        "with W = I 'general' is 'dot'; a window of the whole source, and a predicted place with "
        "sigma without end, are global attention; gradient reaches the place; local-m with a reach "
        "of 1 copies; on reversal local-p's places correlate with S - t over 0.95",
        max(identity, whole, soft) < 1e-4 and reaches > 0 and right > 0.95 and correlation > 0.95,
        {"general with I": identity, "wide window": whole, "far falls": soft,
         "gradient at the place": reaches, "copied, reach 1": right,
         "places against S - t": correlation},
    )  # fmt: skip


def _reversal() -> float:
    """Correlation of predicted places with where reversal reads, after training."""
    torch.manual_seed(0)
    n = 10
    attention = PredictedAlignment(32, context_dim=32, reach=10, matching="dot")
    words, times = nn.Embedding(8, 32), nn.Embedding(n, 32)
    last = nn.Linear(32, 8)

    def loss() -> Tensor:
        source = torch.randint(0, 8, (32, n))
        states = times.weight.expand(32, -1, -1)
        return F.cross_entropy(
            last(attention(states, words(source))).flatten(0, 1),
            source.flip(1).flatten(),
        )

    held = [
        *attention.parameters(),
        *words.parameters(),
        *times.parameters(),
        *last.parameters(),
    ]
    fit(held, loss, 1000, 3e-3)
    places = attention.places(times.weight[None], torch.tensor([float(n)]))[0, :, 0].detach()
    return float(torch.corrcoef(torch.stack((places, n - torch.arange(n) - 0.5)))[0, 1])


@check("monotonic_location_attention")
def monotonic() -> Measured:
    """Steps of one stay on target; reversing twice is nothing; copying carries over to length."""
    n = 100
    layer = MonotonicLocation(8, context_dim=8)
    with torch.no_grad():
        layer.to_step.weight.zero_(), layer.to_width.weight.zero_()
        layer.to_width.bias.zero_()
    source, real = torch.randn(1, n, 8), torch.ones(1, n, dtype=torch.bool)
    carried = layer.begin(source, real)
    mass = []
    with torch.no_grad():
        for t in range(n):
            layer.to_step.bias.fill_(0.0 if t == 0 else 1.0)
            weights, carried = layer.step(torch.zeros(1, 8), source, real, carried)
            mass.append(float(weights[0, t]))
    padded = torch.randint(0, 9, (2, 7, 1)).float()
    keep = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    back = torch.zeros(2, 1)
    twice = gap(either_way(either_way(padded, back, keep), back, keep), padded)
    accuracy = {}
    for name, make in (
        ("location", lambda: OneStepLocation(32, context_dim=32)),
        ("content", lambda: GlobalAlignment(32, context_dim=32)),
    ):
        torch.manual_seed(0)
        accuracy[name] = copied(trained(make(), (5, 11), 800), 50)
    return Measured(
        "with steps 0, 1, 1, ... over 0.9 of each row lies on its place at 100 tokens, untrained; "
        "reversing twice is the identity, padding included; trained to copy 5 to 10 tokens it "
        "copies 50 with over 95% of tokens right, attention by content with under half",
        min(mass) > 0.9 and twice == 0 and accuracy["location"] > 0.95
        and accuracy["content"] < 0.5,
        {"least mass on the place": min(mass), "reversed twice": twice,
         **{f"copied at 50, {name}": a for name, a in accuracy.items()}},
        left_out="exact match of whole strings; tokens are counted",
    )  # fmt: skip


@check("dca_gmm_attention")
def location_relative() -> Measured:
    """Means only grow, the prior moves one place forward on average, and nothing goes back."""
    mixture = GaussianMixture(16, context_dim=16)
    source, real = torch.randn(2, 30, 16), torch.ones(2, 30, dtype=torch.bool)
    carried, least = mixture.begin(source, real), float("inf")
    for _ in range(10):
        before = carried["mu"]
        _, carried = mixture.step(3 * torch.randn(2, 16), source, real, carried)
        least = min(least, float((carried["mu"] - before).detach().min()))
    prior = beta_binomial(10, 0.1, 0.9)
    mean = float(prior @ torch.arange(11.0))
    moving = DynamicConvolutionAttention(16, context_dim=16)
    at = torch.zeros(2, 30)
    at[:, 15] = 1.0
    weights, _ = moving.step(torch.randn(2, 16), source, real, {"weights": at})
    beyond = float((weights[:, :15].sum(1) + weights[:, 26:].sum(1)).detach().max())
    start = mixture.to_mixture[2].bias.view(3, -1)
    steps = float(F.softplus(start[1]).mean().detach())
    widths = float(F.softplus(start[2]).mean().detach())
    accuracy = {}
    for name, make in (
        ("gmm", lambda: GaussianMixture(32, context_dim=32, mixtures=2, hidden=32)),
        ("dca", lambda: DynamicConvolutionAttention(32, context_dim=32, hidden=32)),
        ("content", lambda: GlobalAlignment(32, context_dim=32)),
    ):
        torch.manual_seed(0)
        accuracy[name] = copied(trained(make(), (20, 21), 700), 100, rows=8)
    located = min(accuracy["gmm"], accuracy["dca"]) > accuracy["content"] + 0.3
    return Measured(
        "means never fall; the prior sums to 1 with a mean step of 1; an alignment moves neither "
        "back nor more than 10 places beyond the floor of 1e-6; steps start at 1 and widths at 10; "
        "trained to copy 20 tokens, both copy 100 far better than attention by content",
        least >= 0 and abs(mean - 1) < 1e-4 and beyond < 0.01 and located
        and abs(steps - 1) < 1e-4 and abs(widths - 10) < 1e-3,
        {"least step of a mean": least, "mean of the prior": mean, "mass out of reach": beyond,
         "first step": steps, "first width": widths,
         **{f"copied at 100, {name}": a for name, a in accuracy.items()}},
    )  # fmt: skip


@check("attentional_conditioning")
def conditioning() -> Measured:
    """Neutral conditioning is the baseline; knowledge moves weights, not values; it helps."""
    h, c = torch.randn(3, 9, 16), torch.randn(3, 9, 4)
    plain, affine = ConditionedPooling(16, 4), AffinePooling(16, 4)
    affine.load_state_dict(plain.state_dict(), strict=False)
    neutral = gap(affine(h, c), plain(h, c))
    gated = GatedPooling(16, 4)
    moved = gap(gated(h, 3 * c), gated(h, c))
    ones = gated(torch.ones(3, 9, 16), c)
    hull = gap(ones, torch.ones(3, 16))
    accuracy = {
        name: _flagged(kind)
        for name, kind in (("gated", GatedPooling), ("plain", ConditionedPooling))
    }
    return Measured(
        "a scale of 1 and a shift of 0 are the baseline; other knowledge moves the weights while "
        "what is averaged stays the states; where only flagged words decide, gating is over 5 "
        "points better than the baseline",
        neutral < 1e-6 and moved > 1e-4 and hull < 1e-5
        and accuracy["gated"] > accuracy["plain"] + 0.05,
        {"neutral": neutral, "moved": moved, "constant values": hull,
         **{f"accuracy, {name}": a for name, a in accuracy.items()}},
    )  # fmt: skip


def _flagged(kind: type[ConditionedPooling]) -> float:
    """Accuracy on texts of noisy words of which two, flagged in c, decide."""
    torch.manual_seed(0)
    direction, common = F.normalize(torch.randn(2, 16), dim=-1) * torch.tensor([[1.0], [4.0]])

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        signs = torch.randint(0, 2, (rows, 12)) * 2.0 - 1
        flags = torch.zeros(rows, 12, 1)
        place = torch.rand(rows, 12).argsort(1)[:, :2]
        wanted = torch.randint(0, 2, (rows,))
        signs.scatter_(1, place, (2.0 * wanted - 1)[:, None].expand(-1, 2))
        flags.scatter_(1, place[..., None], 1.0)
        return signs[..., None] * direction * 2 + common + torch.randn(rows, 12, 16), flags, wanted

    pool, last = kind(16, 1), nn.Linear(16, 2)

    def loss() -> Tensor:
        h, c, wanted = batch(64)
        return F.cross_entropy(last(pool(h, c)), wanted)

    fit([*pool.parameters(), *last.parameters()], loss, 300, 1e-2)
    h, c, wanted = batch(2000)
    return float((last(pool(h, c)).argmax(-1) == wanted).float().mean())
