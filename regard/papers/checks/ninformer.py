"""Without token maps tokens do not meet; with them all do; digits are told apart better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.gate_networks import MixerGate
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


class _Mixer(nn.Module):
    """An MLP-Mixer block on 16 tokens, as wide as the gated block's inner network."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList((nn.LayerNorm(dim), nn.LayerNorm(dim)))
        self.tokens, self.channels = (
            nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, n)) for n in (16, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).mT).mT
        mixed: Tensor = x + self.channels(self.norms[1](x))
        return mixed


def _digits(name: str) -> float:
    """Accuracy on noisy shifted glyphs, five strokes drawn on 8 x 8 places, in 2 x 2 patches."""
    restart()
    glyphs = (torch.rand(10, 8, 8) < 0.35).float()

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        wanted = torch.randint(0, 10, (rows,))
        image = glyphs[wanted] + 0.8 * torch.randn(rows, 8, 8)
        shift = int(torch.randint(-1, 2, ()))
        image = image.roll(shift, 2)
        patches = image.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
        return patches, wanted

    dim = 32
    embed, last = nn.Linear(4, dim), nn.Linear(dim, 10)
    if name == "ninformer":
        body: nn.Module = nn.Sequential(nn.LayerNorm(dim), MixerGate(dim, tokens=16, hidden=48))
    else:
        body = _Mixer(dim, 61)  # as many parameters as the gated block: 5,9xx

    def scores(x: Tensor) -> Tensor:
        x = embed(x)
        answer: Tensor = last((x + body(x)).mean(1))
        return answer

    def loss() -> Tensor:
        x, wanted = batch(64)
        return F.cross_entropy(scores(x), wanted)

    held = [*embed.parameters(), *body.parameters(), *last.parameters()]
    fit(held, loss, 500, 3e-3)
    hits = []
    for _ in range(6):
        x, wanted = batch(500)
        hits.append((scores(x).argmax(-1) == wanted).float().mean())
    return float(torch.stack(hits).mean())


@check(
    "ninformer",
    narrowed={
        "with trained ones": "maps as they start, not trained",
        "Beats MLP-Mixer": "drawn glyphs of 8 x 8 pixels, not CIFAR-10 or digits",
    },
)
def mixer_gate() -> Claims:
    """Without token maps tokens do not meet; with them all do; digits are told apart better."""
    layer, x = MixerGate(32, tokens=12), torch.randn(1, 12, 32)
    changed = x.clone()
    changed[:, 5] = torch.randn(32)
    with torch.no_grad():
        met = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 0).sum()
        layer.over_tokens[-1].weight.zero_(), layer.over_tokens[-1].bias.zero_()
        alone = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 0).sum()
        layer.over_channels[-1].weight.zero_(), layer.over_channels[-1].bias.zero_()
    exact = gap(layer(x), layer.to_value(x) * x)
    accuracy = {name: _digits(name) for name in ("ninformer", "mlp-mixer")}
    yield claim(
        "With zero token-mix weights", "outputs that a changed token changes", int(alone)
    ).equals(1, "its own")
    yield claim("with trained ones", "outputs that a changed token changes", int(met)).equals(
        12, "all"
    )
    yield claim("With zeroed inner last layers", "difference from (X W_p + b) * X", exact).within(
        1e-6, "the formula", because=FLOAT32
    )
    yield claim("Beats MLP-Mixer", "accuracy", accuracy["ninformer"], over="median").above(
        accuracy["mlp-mixer"], "an MLP-Mixer of as many parameters"
    )
