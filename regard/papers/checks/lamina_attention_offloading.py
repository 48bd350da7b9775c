"""Two processes attend: the same tokens, bytes by the formula, both sides busy."""

from __future__ import annotations

from typing import Any

import torch

from regard.memories.remote import staggered, wire_bytes
from regard.memories.workers import AttentionWorkers
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.remote_attention import RemoteAttention
from regard.run.api import attend
from regard.verbs import shrink


@check(
    "lamina_attention_offloading",
    beyond=(
        "sending q before k and v are projected; links between machines, and throughput for money"
    ),
)
@torch.no_grad()
def attention_offloading() -> Claims:
    """Two processes attend: the same tokens, bytes by the formula, both sides busy."""
    model: Any = llama()
    ids = torch.randint(3, 64, (2, 50))
    how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **how)
    with AttentionWorkers(2) as workers:
        with shrink(model, RemoteAttention(workers=workers), check=False):
            same = torch.equal(model.generate(ids, **how), plain)
            cache = model(ids).past_key_values
            before = workers.sent + workers.received
            model(ids[:, :1], past_key_values=cache)
            moved = workers.sent + workers.received - before
        memory = workers.remote()
        q, k, v = torch.randn(1, 8, 99, 32), torch.randn(1, 2, 99, 32), torch.randn(1, 2, 99, 32)
        memory.append(k[:, :, :-1], v[:, :, :-1])
        memory.append(k[:, :, -1:], v[:, :, -1:])
        wrong = gap(memory.attend(q[:, :, -1:]), attend(q[:, :, -1:], k, v))
    formula = wire_bytes(heads=4, kv_heads=2, size=16, batch=2, layers=4, item=4)
    idle = max(max(staggered(n, 1.0, 1.0 / (n - 1))) for n in (2, 4, 8))
    uneven = staggered(4, 3.0, 2.0)[0]
    yield claim("Two processes", "same 20 tokens of two texts", same).equals(
        True, "local attention"
    )
    yield claim("bytes counted per step", "bytes of a step", moved).equals(
        formula, "(2 + 2/G) e d B L"
    )
    yield claim("the split (previous", "difference", wrong).within(
        1e-6, "full softmax", because=CATALOGUE
    )
    yield claim("the staggered schedule", "largest idle share", idle).below(
        1e-3, "about 0", because="a thousandth: the first and last slot"
    )
    yield claim(
        "the staggered schedule", "idle share of replicas, attention twice as long", uneven
    ).above(
        idle, "that of the even schedule", plus=0.3, because="or the simulator would show 0 always"
    )
