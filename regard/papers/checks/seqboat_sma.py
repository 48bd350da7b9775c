"""All awake is plain gated attention, none is the average; packing loses nothing; recall."""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.layers.building import model
from regard.layers.modular import GatheredTokens, SparseModular
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.linear_cost import scene_of
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit

KEYS, VALUES, FILLERS, PAIRS = 8, 8, 2, 4


STEPS = 250


def always(layer: SparseModular, awake: bool) -> None:
    """Let a router say the same of every token."""

    def route(self: SparseModular, averaged: Tensor) -> tuple[Tensor, Tensor]:
        said = averaged.new_full(averaged.shape[:2], float(awake))
        return said.bool(), said

    layer.route = types.MethodType(route, layer)  # type: ignore[method-assign]  # a planted route


def recall(awake: bool | None) -> tuple[float, float]:
    """Accuracy of recalling four values among fillers, and the share of tokens that were awake."""
    restart()
    words = FILLERS + KEYS + VALUES
    tiny = model(["seqboat_sma"], dim=32, vocab=words, window=64, rates=2, tied=False)
    layer = next(part for part in tiny.modules() if isinstance(part, SparseModular))
    if awake is not None:
        always(layer, awake)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, FILLERS, (rows, 24))
        keys = torch.rand(rows, KEYS).argsort(1)[:, :PAIRS]
        values = torch.randint(0, VALUES, (rows, PAIRS))
        slots = 2 * torch.rand(rows, 12).argsort(1)[:, :PAIRS].sort(1).values
        x = x.scatter(1, slots, FILLERS + keys).scatter(1, slots + 1, FILLERS + KEYS + values)
        order = torch.rand(rows, PAIRS).argsort(1)
        asked = torch.randint(0, FILLERS, (rows, 2 * PAIRS))
        asked[:, ::2] = FILLERS + keys.gather(1, order)
        return torch.cat([x, asked], 1), values.gather(1, order)

    def scores(x: Tensor) -> Tensor:
        found: Tensor = tiny(x)[:, 24::2, FILLERS + KEYS :]
        return found

    def loss() -> Tensor:
        x, wanted = batch(24)
        return F.cross_entropy(scores(x).flatten(0, 1), wanted.flatten())

    fit(tiny.parameters(), loss, STEPS, 8e-3)
    shares: list[float] = []
    route = layer.route

    def noted(averaged: Tensor) -> tuple[Tensor, Tensor]:
        chosen, trust = route(averaged)
        shares.append(float(chosen.float().mean()))
        return chosen, trust

    layer.route = noted  # type: ignore[method-assign]  # a recording route
    x, wanted = batch(512)
    with torch.no_grad():
        right = (scores(x).argmax(-1) == wanted).float().mean()
    return float(right), shares[0]


@check("seqboat_sma")
def modular() -> Claims:
    """All awake is plain gated attention, none is the average; packing loses nothing; recall."""
    x = torch.randn(2, 20, 32)
    layer = SparseModular(32, window=20, causal=True)
    always(layer, True)
    averaged = F.silu(layer.average(x, scene_of(x)))
    q, k = (layer.position.turn(t, torch.arange(20)) for t in layer.scalings(averaged))
    v = F.silu(layer.to_v(averaged))[:, None]
    seen = layer.attend(Call.of(q, k, v, Rule(Causal())))[:, 0]
    gated = layer.to_out(F.silu(layer.to_reset(averaged)) * seen)
    plain = x + layer.to_plain(averaged)
    all_awake = gap(layer(x), F.silu(plain + gated))

    always(layer, False)
    calls: list[Call] = []
    # Records the call and returns q.
    layer.attend = lambda call: calls.append(call) or call.q  # type: ignore[assignment,func-returns-value]
    none_awake = gap(layer(x), F.silu(plain))
    chosen = torch.rand(3, 50) < 0.3
    tokens = torch.randn(3, 50, 8)
    packed = GatheredTokens.of(chosen)
    identity = gap(packed.put_back(packed.take(tokens), 50), tokens * chosen[..., None])

    routed, share = recall(None)
    full, _ = recall(True)
    average, _ = recall(False)
    yield claim("All-active router", "difference", all_awake).within(
        1e-5, "average and gated attention without routing", because=FLOAT32
    )
    yield claim("none-active equals", "difference", none_awake).within(
        1e-6, "the average layer", because=FLOAT32
    )
    yield claim("none-active equals", "times attention was run", len(calls)).equals(0, "none")
    yield claim("compress-then-extract", "difference on active tokens", identity).equals(
        0.0, "identity"
    )
    yield claim("on associative recall", "share of tokens awake", share).below(
        0.5, "half", because="low: a third of the tokens are pairs and questions"
    )
    yield claim("on associative recall", "accuracy, routed", routed).above(
        average, "the average alone, trained alike", plus=0.1, because="ten points: 2,048 answers"
    )
    yield claim("on associative recall", "the same", routed).above(
        full,
        "all awake, trained alike",
        plus=-0.05,
        because="equals: within five points of another training",
    )
