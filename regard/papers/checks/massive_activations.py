"""What was planted is found; an extra key that no one meets, or of no value, changes little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.core.weigh import Softmax
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.copier_models import CAUSAL
from regard.papers.shared.measure import gap
from regard.probes.sinks import MassiveActivations, output_split
from regard.run.api import attend
from regard.run.reference import weight_matrix


@check(
    "massive_activations",
    beyond="interventions on large models, where such states are",
)
def massive() -> Claims:
    """What was planted is found; an extra key that no one meets, or of no value, changes little."""
    x = torch.randn(2, 12, 32)
    x[1, 7, 19] = -1e4
    layers = nn.ModuleList([nn.Identity()])
    with MassiveActivations.of(layers) as watch:
        layers[0](x)
    q, k, v = torch.randn(3, 2, 4, 12, 8)
    plain = attend(q, k, v, CAUSAL)

    def with_key(score: float) -> Tensor:
        weigh = Softmax(sink=torch.full((4,), score))
        return attend(q, k, v, Rule(Causal(), weigh=weigh))

    unseen = gap(with_key(-1e4), plain)
    ones = gap(with_key(0.0), attend(q, k, v, Rule(Causal(), weigh=Softmax(plus_one=True))))
    yield claim("k' with score -> -inf", "difference", unseen).within(
        1e-6, "plain attention", because=FLOAT32
    )
    yield claim("k'=0,v'=0 equals", "difference", ones).within(
        1e-6, "softmax with +1 in the denominator", because=CATALOGUE
    )
    tokens = [token for _, token, _, _ in watch.found]
    call = Call.of(q, k, v, CAUSAL)
    given, rest = output_split(call, tokens)
    by_hand = weight_matrix(call)[0][..., tokens] @ v[:, :, tokens]
    yield claim(
        "Planting a 1e4 entry", "difference of both parts' sum", gap(given + rest, plain)
    ).within(1e-6, "the output", because=FLOAT32)
    yield claim(
        "Planting a 1e4 entry", "difference of what the token gives", gap(given, by_hand)
    ).within(1e-6, "its weights times its values", because=FLOAT32)
    yield claim("Planting a 1e4 entry", "what the detector returns", str(watch.found)).equals(
        "[('layer 0', 7, 19, -10000.0)]", "the planted entry, and it alone"
    )
