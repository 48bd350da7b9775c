"""Bounds hold, small logical pages find needles more often, and reading is constant."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.streaming_heads import LServe
from regard.run.counting import counted


@check("lserve", beyond="one block-skipping kernel and 4-bit pages on a GPU")
def lserve() -> Claims:
    """Bounds hold, small logical pages find needles more often, and reading is constant."""
    from regard.memories.summaries import Bounds
    from regard.policies.registry import policy
    from regard.policies.selecting import page_scores
    from regard.verbs import shrink

    restart()
    q, k = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 512, 32)
    bounds = Bounds(16)
    bounds.append(k)
    score = page_scores(q, bounds.read())[:, :, 0]
    exact = (q @ k.repeat_interleave(2, 1).transpose(2, 3))[:, :, 0]
    slack = float((score - exact.unflatten(-1, (-1, 16)).amax(-1)).min())

    def found(logical: int, tries: int = 100) -> float:
        hits = 0
        for draw in range(tries):
            restart(f"needle {draw}")
            keys, query = torch.randn(1, 1, 4096, 32), torch.randn(1, 1, 1, 32)
            place = int(torch.randint(64, 4032, ()))
            keys[0, 0, place] = 1.4 * query[0, 0, 0]
            held = Bounds(logical)
            held.append(keys)
            pages = page_scores(query, held.read())[0, 0, 0]
            pages = pages.unflatten(0, (-1, 64 // logical)).amax(-1)
            hits += place // 64 in pages.topk(8).indices.tolist()
        return hits / tries

    small, large = found(16), found(64)
    made = llama()
    ids = torch.randint(3, 64, (1, 1024))
    gates = {"gates": {s: [0.2, 0.8] for s in range(4)}}

    def step_of_length(
        n: int, keep: int | float, streaming: float = 0.5
    ) -> tuple[Tensor, float, float]:
        """Logits of a step, its operations, and the keys that its heads read."""
        one = policy("lserve", page=64, streaming=streaming, recent=64)
        assert isinstance(one, LServe)
        one.take(gates)
        with shrink(made, one, keep=keep, check=False) as shrunk, torch.no_grad():
            cache = made(ids[:, : n - 1]).past_key_values
            before, read = sum(x.flops for x in shrunk.stage.costs.values()), counted()
            logits = made(ids[:, n - 1 : n], past_key_values=cache).logits
            after = sum(x.flops for x in shrunk.stage.costs.values())
        return logits, after - before, counted().less(read).pairs

    with torch.no_grad():
        plain = made(ids[:, :512]).logits[:, -1:]
    whole = gap(step_of_length(512, 4096, 0.0)[0], plain)
    (_, half, read), (_, double, read_double) = (step_of_length(n, 192) for n in (512, 1024))
    # Of the heads that read all (half of 4, in 4 layers) the bounds of 16 tokens are scored.
    bounds_scored = double - half
    yield claim("With budget >= context", "difference of a step's logits", whole).within(
        1e-5, "dense attention", because=CATALOGUE
    )
    yield claim("for random keys", "least slack of a bound", slack).at_least(
        0, "max of q.k", plus=-1e-4, because="float32 sums of 32 products near 10"
    )
    yield claim("with N_P=64 plus", "needles found of 100, N_L = 16", small).above(
        large, "N_L = 64 at equal budget"
    )
    yield claim("tokens read per step", "keys read in a step at 1,024 tokens", read_double).equals(
        read, "at 512"
    )
    yield claim(
        "tokens read per step",
        "operations more at 1,024 tokens, for bounds of pages",
        bounds_scored,
    ).equals(4.0 * 2 * 32 * 2 * 32, "4 layers, 2 heads, 32 pages, products of 32")
