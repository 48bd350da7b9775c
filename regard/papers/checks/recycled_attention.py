"""Full steps refresh what steps between read; what became relevant late is found again."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.registry import policy
from regard.verbs import shrink


@check(
    "recycled_attention",
    narrowed={"a planted needle": "by queries and keys, not through a model that decodes"},
)
def recycled() -> Claims:
    """Full steps refresh what steps between read; what became relevant late is found again."""
    made = llama()
    ids = torch.randint(3, 64, (1, 200))
    restart()

    def run(every: int, keep: float | int) -> tuple[Tensor, list[float]]:
        reads, out = [], []
        with (
            shrink(made, policy("recycled", every=every), keep=keep, check=False) as shrunk,
            torch.no_grad(),
        ):
            cache = made(ids[:, :150]).past_key_values
            for t in range(150, 200):
                before = sum(x.flops for x in shrunk.stage.costs.values())
                out.append(made(ids[:, t : t + 1], past_key_values=cache).logits)
                spent = sum(x.flops for x in shrunk.stage.costs.values()) - before
                reads.append(spent / (4 * 4 * 2.0 * 32))
        return torch.cat(out, 1), reads

    with torch.no_grad():
        plain = made(ids).logits[:, 150:]
    always, wide_ = gap(run(0, 16)[0], plain), gap(run(8, 400)[0], plain)
    stride = 8
    _, reads = run(stride, 16)
    # After the prompt, steps between read 16 keys and each (stride + 1)-th reads all.
    full_at = [t for t, r in enumerate(reads) if r > 100]  # because: 16 or all of over 150
    steady = {b - a for a, b in pairwise(full_at)}
    between = {round(r) for t, r in enumerate(reads) if t not in full_at}

    # A needle that the prompt's last query ignores, and a later query wants.
    hit_recycled, hit_evicted = 0, 0
    for _ in range(20):
        k = torch.randn(1, 1, 256, 32)
        early, late = torch.randn(2, 32)
        place = 100
        k[0, 0, place] = 2 * (late - early * (late @ early) / (early @ early))
        kept = (k[0, 0] @ early).topk(32).indices
        hit_evicted += int(place in kept)
        hit_recycled += int(place in (k[0, 0] @ late).topk(32).indices)
    yield claim("S=1 or K>=T", "difference of every step full", always).within(
        1e-4, "full attention", because=FLOAT32
    )
    yield claim("S=1 or K>=T", "difference with room for all", wide_).within(
        1e-4, "full attention", because=FLOAT32
    )
    yield claim("a planted needle", "needles found of 20 by the later query", hit_recycled).equals(
        20, "all"
    )
    yield claim("a planted needle", "needles kept of 20 by the prompt's query", hit_evicted).below(
        10, "half", because="a key that it ignores is kept by chance: 32 of 256"
    )
    yield claim("key reads per S steps", "steps between full ones", str(sorted(steady))).equals(
        str([stride + 1]), "S"
    )
    yield claim("key reads per S steps", "keys read between", str(sorted(between))).equals(
        "[16]", "K"
    )
