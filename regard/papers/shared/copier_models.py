"""Models trained to go on with what was shown twice, and heads whose maps are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.layers.attention import Attention
from regard.layers.building import model
from regard.models.engine import Engine
from regard.models.site import Site
from regard.papers.seeding import restart
from regard.papers.shared.small_trainer import fit
from regard.probes.base import Probe
from regard.probes.reading import Reading

CAUSAL = Rule(Causal())


def looked(probe: Probe, call: Call, reading: Reading | None = None) -> Tensor:
    """Score one call, and give the numbers by head."""
    site = call.site or Site(0, module="attention", heads=call.h, kv_heads=call.g)
    if reading is not None:
        probe.show(reading)
    Engine([probe]).run(call.replace(site=site))
    return probe.told().values[site]


def pointing(keys: Tensor, sharp: float = 1e4) -> Call:
    """Heads whose query i looks at keys[h, i] alone."""
    h, n = keys.shape
    eye = torch.eye(n)
    return Call.of(sharp * eye[keys][None], eye.expand(1, h, n, n), eye.expand(1, h, n, n), CAUSAL)


def copier(
    layers: int, heads: int | tuple[int, ...] = 4, kind: type[Attention] = Attention
) -> tuple[nn.Module, float]:
    """Train layers on random tokens shown twice; give the loss on the repeat.

    `heads`, of all layers or of each, share 64 channels; if they do not divide them, each has 16.
    """
    restart()
    by_layer = (heads,) * layers if isinstance(heads, int) else heads
    tiny = model(
        [
            kind(64, heads=h, head_dim=16 if 64 % h else None, causal=True, position="rotary")
            for h in by_layer
        ],
        vocab=40, dim=64, tied=False,
    )  # fmt: skip
    fit(tiny.parameters(), lambda: loss_on_repeat(tiny, 32), 600, 6e-3)
    return tiny, repeat_loss(tiny)


def loss_on_repeat(tiny: nn.Module, rows: int) -> Tensor:
    """Cross-entropy of the second showing of random tokens."""
    # The period differs from batch to batch, or a head could look a fixed distance back.
    period = int(torch.randint(6, 21, ()))
    tokens = torch.randint(0, 40, (rows, period)).repeat(1, 40 // period + 1)[:, :40]
    said = tiny(tokens)[:, period:-1]
    return F.cross_entropy(said.flatten(0, 1), tokens[:, period + 1 :].flatten())


def repeat_loss(tiny: nn.Module) -> float:
    """Return the mean loss of twelve batches, the same ones at each call."""
    restart()
    with torch.no_grad():
        return sum(float(loss_on_repeat(tiny, 32)) for _ in range(12)) / 12
