"""One piece is the plain model; copies change entropy alone; on a real model entropy rises."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.attach import attach
from regard.models.engine import Engine
from regard.models.loading import load
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.probes.base import Probe
from regard.probes.parallel_context import ParallelContext, TailEntropy, parallel_positions
from regard.run.survey import survey
from regard.verbs import default_text

PLACE = Site(0, module="attention", heads=4, kv_heads=4)


@check(
    "parallel_context_entropy",
    beyond=(
        "that a shared prefix lowers the entropy, or choosing pieces the loss: on the small "
        "model that ships both were seen not to hold"
    ),
)
def pieces() -> Claims:
    """One piece is the plain model; copies change entropy alone; on a real model entropy rises."""
    model, tokenizer = load()
    model = model.float()
    ids = torch.tensor(tokenizer(default_text(9000))["input_ids"])[None, :544]

    def read(stages: list[object], places: Tensor | None = None) -> Tensor:
        # Stages are typed object.
        with attach(model, stages, check=False), torch.no_grad():  # type: ignore[arg-type]
            return model(ids, position_ids=places).logits

    plain = read([])
    one = ParallelContext((492,), tail=48, prefix=4)
    same = gap(read([one], parallel_positions((492,), 48, 4)[None]), plain)

    lengths, tail, prefix = (123, 123, 123, 123), 48, 4
    places = parallel_positions(lengths, tail, prefix)[None]
    apart, all_of = (ParallelContext(lengths, tail, prefix, best=b) for b in (None, 4))
    identity = gap(read([all_of], places), read([apart], places))

    # Copies of one piece, read by queries that see nothing else.
    q, k, v = torch.randn(3, 1, 4, 20, 8, dtype=torch.float64)
    once = Call.of(q[:, :, -1:], k[:, :, :16], v[:, :, :16], Rule(Causal()).shift(64), site=PLACE)
    many = once.replace(k=once.k.repeat(1, 1, 4, 1), v=once.v.repeat(1, 1, 4, 1))
    moved = gap(Engine().run(once), Engine().run(many))
    entropy = [survey(c.q, c.k, c.v, c.rule, want=("entropy",)).entropy for c in (once, many)]
    risen = gap(entropy[1] - entropy[0], torch.full_like(entropy[0], math.log(4)))

    def measured(context: ParallelContext | None, by: list[object]) -> tuple[float, float, float]:
        probe: Probe = TailEntropy(tail, context)
        places_ = None if context is None else parallel_positions(
            context.lengths, tail, context.prefix)[None]  # fmt: skip
        logits = read([*by, probe], places_)[0, -tail - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, -tail:])
        scores = probe.told()
        values = torch.stack(list(scores.values.values()))
        by_piece = list(scores.details["pieces"].values())
        spread = float(torch.stack(by_piece).mean()) if by_piece else 0.0
        return float(values.mean()), spread, float(loss)

    bare = ParallelContext((124, 124, 124, 124), tail)
    full, without, sinks = measured(None, []), measured(bare, [bare]), measured(apart, [apart])
    bound = math.log(ids.shape[1])
    yield claim("P=1 with prefix", "difference of logits", same).within(
        1e-4, "the plain model", because=FLOAT32
    )
    yield claim("K=P selection", "difference of logits", identity).within(
        1e-4, "no selection", because=FLOAT32
    )
    for name, found in (("whole", full), ("apart", without), ("prefix", sinks)):
        yield claim("entropy is bounded", f"mean entropy, {name}", found[0]).below(
            bound, "log of the keys"
        )
    yield claim("attention over P identical", "difference of the output", moved).within(
        1e-9, "one copy", because=FLOAT64
    )
    yield claim("attention over P identical", "rise of the entropy, less log 4", risen).within(
        1e-4, "log P", because=FLOAT32
    )
