"""Without token maps tokens do not meet; with them all do; digits are told apart better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.gate_networks import MixerGate
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart, seed, seeds
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit
from regard.tasks.base import Batch
from regard.tasks.pixels import PatchDigits

STEPS = 500


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


def _trained(name: str) -> tuple[nn.Module, float]:
    """A block trained on handwritten digits of 8 x 8 pixels in 2 x 2 patches; right of 360 others.

    Blocks start alike and read the same 1,437 images.
    """
    restart()
    dim = 32
    embed, last = nn.Linear(4, dim), nn.Linear(dim, 10)
    if name == "ninformer":
        body: nn.Module = nn.Sequential(nn.LayerNorm(dim), MixerGate(dim, tokens=16, hidden=48))
    else:
        body = _Mixer(dim, 61)  # as many parameters as the gated block: 5,9xx
    task, drawn = PatchDigits(), seeds()

    def scores(batch: Batch) -> Tensor:
        x = embed(batch.x[:, :16, :4])  # the last token and channel ask: here all are read
        answer: Tensor = last((x + body(x)).mean(1))
        return answer

    def loss() -> Tensor:
        batch = task.batch(64, next(drawn))
        return F.cross_entropy(scores(batch), batch.y[:, -1])

    held = [*embed.parameters(), *body.parameters(), *last.parameters()]
    fit(held, loss, STEPS, 3e-3)
    with torch.no_grad():
        batch = PatchDigits(part="held out").batch(4000, seed())
        right = float((scores(batch).argmax(-1) == batch.y[:, -1]).float().mean())
    return body, right


@check("ninformer")
def mixer_gate() -> Claims:
    """Without token maps tokens do not meet; with them all do; digits are told apart better."""
    made = {name: _trained(name) for name in ("ninformer", "mlp-mixer")}
    accuracy = {name: right for name, (_, right) in made.items()}
    (body, _), x = made["ninformer"], torch.randn(1, 16, 32)
    layer: MixerGate = body[1]  # type: ignore[index,assignment]  # as the stack above is made
    changed = x.clone()
    changed[:, 5] = torch.randn(32)
    with torch.no_grad():
        met = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 0).sum()
        layer.over_tokens[-1].weight.zero_(), layer.over_tokens[-1].bias.zero_()
        alone = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 0).sum()
        layer.over_channels[-1].weight.zero_(), layer.over_channels[-1].bias.zero_()
    exact = gap(layer(x), layer.to_value(x) * x)
    yield claim(
        "With zero token-mix weights", "outputs that a changed token changes", int(alone)
    ).equals(1, "its own")
    yield claim("with trained ones", "outputs that a changed token changes", int(met)).equals(
        16, "all"
    )
    yield claim("With zeroed inner last layers", "difference from (X W_p + b) * X", exact).within(
        1e-6, "the formula", because=FLOAT32
    )
    yield claim(
        "Beats MLP-Mixer", "share right of handwritten digits", accuracy["ninformer"], over="median"
    ).above(accuracy["mlp-mixer"], "an MLP-Mixer of as many parameters")
