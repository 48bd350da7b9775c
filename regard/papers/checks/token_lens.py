"""What tokens bring sums to the layer; a trained lister turns against what it has said."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.circuits.patching import knockout
from regard.core.call import Call
from regard.layers.attention import Attention
from regard.layers.building import model as stack
from regard.models.attach import attach
from regard.models.residual import watched
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.shipped_model import demo
from regard.papers.shared.small_trainer import fit
from regard.probes.logits import TokenLens


def _lists(sets: Tensor, rows: int) -> Tensor:
    """A subject, then its five members in some order."""
    subject = torch.randint(len(sets), (rows,))
    order = torch.rand(rows, 5).argsort(1)
    return torch.cat([subject[:, None], sets[subject].gather(1, order)], 1)


def _lister() -> tuple[nn.Module, Tensor]:
    restart()
    sets = torch.stack([8 + torch.randperm(16)[:5] for _ in range(8)])
    tiny = stack(
        [Attention(48, heads=4, causal=True, position="rotary") for _ in range(2)],
        vocab=24, dim=48, tied=False,
    )  # fmt: skip

    def loss() -> Tensor:
        ids = _lists(sets, 64)
        return F.cross_entropy(tiny(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    fit(tiny.parameters(), loss, 400, 5e-3)
    return tiny.eval(), sets


@check("token_lens", beyond="large models on country and city lists")
def token_lens() -> Claims:
    """What tokens bring sums to the layer; a trained lister turns against what it has said."""
    model, ids = demo()
    n = ids.shape[1]
    lenses = [TokenLens(some) for some in ([0], range(1, 9), range(9, n))]
    with attach(model, lenses, check=False), torch.no_grad():
        model(ids)
    stream = watched(model, ids)
    parts = max(
        gap(sum(lens.said[layer.site] for lens in lenses), stream.heads(layer.site)[:, :, -1])
        for layer in stream.layers
    )
    alone = 0.0

    def own(call: Call) -> None:
        nonlocal alone
        alone = max(alone, float((closed_weights(call, "check")[0, :, -1, -1] - 1).abs().max()))

    class OwnWeight(Stage):
        def see(self, call: Call, result: Any) -> None:
            own(call)

    others = knockout([n - 1], range(n - 1))
    with attach(model, [others, OwnWeight()], check=False), torch.no_grad():
        model(ids)
    lister, sets = _lister()
    ids = _lists(sets, 64)
    lens = TokenLens([1, 2, 3], row=3)
    with attach(lister, lens, check=False), torch.no_grad():
        lister(ids)
    last = list(lens.said)[-1]
    logits = lens.logits(last)
    logits = logits - logits.mean(1, keepdim=True)
    said = float(logits.gather(1, ids[:, 1:4]).mean())
    left = float(logits.gather(1, ids[:, 4:6]).mean())
    with torch.no_grad():
        right = lister(ids)[:, 3].argmax(-1)
    listed = float((right[:, None] == ids[:, 4:6]).any(1).double().mean())
    yield claim("Sum of Token Lens", "largest difference of a partition", parts).within(
        1e-5, "the layer's attention output", because=CATALOGUE
    )
    yield claim("knocking out T", "largest distance of the self weight", alone).within(
        1e-6, "1", because=FLOAT32
    )
    yield claim("on a toy trained model", "logits of answers that were given", said).below(
        0, "the mean of all words"
    )
    yield claim("on a toy trained model", "the same against answers left", said).below(
        left, "answers left", plus=-1, because="a logit: e times less likely"
    )
    yield claim("on a toy trained model", "lists without repeats", listed).above(
        0.95, "a task that is learned", because="or nothing would be suppressed"
    )
