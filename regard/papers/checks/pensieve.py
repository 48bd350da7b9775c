"""A turn has the logits of the whole history for any split, and runs what it must."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import torch

from regard.memories.tiers import RecomputeCost, Tiers, Worth, least_recent, per_idle_time
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import seed
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.serving.conversations import Conversations


def recomputed(
    worth: Worth, trace: int, cost: RecomputeCost, longest: int, size: int = 64
) -> float:
    """Cost of what is made again in a trace of conversations that share one tier.

    Twenty people talk in turns of some hundred tokens, and think between them for as long as people
    do: mostly seconds, sometimes many minutes. There is room for a quarter of their longest talks.
    """
    draw, each = random.Random(trace), 2 * 2
    tiers = Tiers(device=5 * longest * each, host=0, size=size, cost=cost, worth=worth)
    spent = 0.0
    due = {f"{person}": draw.expovariate(1 / 300) for person in range(20)}
    lengths = dict.fromkeys(due, 0)
    for _ in range(250):
        name = min(due, key=lambda x: due[x])
        clock = due[name]
        if name in tiers:
            dropped, _, _ = tiers.take(name)
            spent += sum(cost(at) for at in range(0, dropped, size))
        new = draw.randint(longest // 80, longest // 9)
        lengths[name] += new
        if lengths[name] > longest:  # the next conversation of the same person
            lengths[name] = new
        x = torch.zeros(1, 1, lengths[name], 1, dtype=torch.float16)
        tiers.put(name, x, x, now=clock)
        due[name] = clock + draw.lognormvariate(4.5, 1.3)
    return spent


@check("pensieve", beyond="transfers that overlap with layers, ragged batches, throughput on a GPU")
@torch.no_grad()
def pensieve() -> Claims:
    """A turn has the logits of the whole history for any split, and runs what it must."""
    model: Any = llama()
    draw = random.Random(seed())
    wrong, counted = 0.0, True
    for _ in range(24):
        lengths = [draw.randint(1, 90) for _ in range(3)]
        token = 2 * 4 * 2 * 16 * 4  # keys and values of 4 layers, 2 heads of 16, float32
        room = [draw.choice([0, 20, 60, 120]) * token for _ in range(2)]
        tiers = Tiers(room[0], room[1], draw.choice([0, 1 << 20]), size=8)
        talks = Conversations(model, tiers=tiers, clock=count().__next__)
        ids = torch.randint(3, 64, (1, sum(lengths)))
        done = 0
        for n in lengths:
            before = tiers.where("ann") if "ann" in tiers else {}
            run = talks.run
            logits = talks.say("ann", ids[:, done : done + n])
            done += n
            whole = model(ids[:, :done]).logits[:, -n:]
            wrong = max(wrong, gap(logits, whole))
            counted &= talks.run - run == n + before.get("dropped", 0)
    kinds = {"pairs": (RecomputeCost([(0, 1.0), (16_000, 20.0)]), 8000),
             "weights": (RecomputeCost([(0, 1.0), (16_000, 2.5)]), 8000),
             "short": (RecomputeCost([(0, 1.0), (16_000, 2.5)]), 1000)}  # fmt: skip
    trace = seed()
    share = {
        name: recomputed(per_idle_time, trace, *how) / recomputed(least_recent, trace, *how)
        for name, how in kinds.items()
    }
    yield claim("For any split", "largest difference of 24 histories", wrong).within(
        1e-5, "a full forward", because=CATALOGUE
    )
    yield claim("For any split", "tokens run are the dropped and the new", counted).equals(
        True, "these alone"
    )
    for name, words in (
        ("pairs", "attention dear"),
        ("weights", "weights dear"),
        ("short", "talks of up to 1,000 tokens"),
    ):
        yield claim(
            "Under a cost model", f"cost made again, share of LRU's, {words}", share[name]
        ).below(1, "LRU's", because="the same trace")
