"""Blocks of a memory on any worker: merged exactly, messages that do not grow, and no debts."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.partial import merge, nothing
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap
from regard.run.api import partial
from regard.run.runner import run
from regard.schemes.lending import Workers, message_bytes


@check(
    "infinite_llm_dist_attention",
    beyond="serving many requests on 32 GPUs, and its throughput",
)
def infinite_llm() -> Claims:
    """Any partition merges; a request outgrows its worker; debts are settled."""
    off = 0.0
    for parts in range(1, 8):
        for size in (1.0, 3e3):
            q, k, v = (torch.randn(1, 4, n, 8, dtype=torch.float64) for n in (3, 40, 40))
            owner = torch.randint(0, parts, (40,))
            whole = partial(size * q, k, v).out
            found = [
                partial(size * q, k[:, :, owner == part], v[:, :, owner == part])
                for part in range(parts) if bool((owner == part).any())
            ]  # fmt: skip
            off = max(off, gap(merge(nothing(whole), *found).out, whole))
    yield claim("Merge of any random partition", "difference", off).within(
        1e-6, "attention to all keys", because=CATALOGUE
    )
    workers = Workers(capacity=3, workers=4, block=8)
    request, other = workers.request(0), workers.request(1)
    other.extend(*(torch.randn(1, 2, 8, 16) for _ in range(2)))
    k, v = torch.randn(1, 2, 72, 16), torch.randn(1, 2, 72, 16)
    sizes, balances, off = [], [], 0.0
    for at in range(0, 72, 8):
        request.extend(k[:, :, at : at + 8], v[:, :, at : at + 8])
        q = torch.randn(1, 4, 1, 16)
        call = Call(q, request.keys())
        sizes.append(message_bytes(call)[0])
        balances.append(sum(workers.balance()))
        whole = run(Call(q, Dense(k[:, :, : at + 8], v[:, :, : at + 8]))).out
        off = max(off, gap(run(call).out, whole))
    yield claim("longer than any one worker", "blocks of the request", len(request.blocks)).above(
        workers.rooms[0], "blocks that a worker has room for"
    )
    yield claim("longer than any one worker", "difference of its attention", off).within(
        1e-5, "one memory", because="rounding of float32 sums in another order"
    )
    yield claim("independent of context length", "bytes of a part at 72 tokens", sizes[-1]).equals(
        sizes[0], "those at 8 tokens"
    )
    yield claim("bytes sent per token", "bytes of a part and its query", sizes[-1]).equals(
        4 * (4 * (16 + 1) + 4 * 16),
        "H (d + 1) numbers back, an output and its log-sum-exp, and the query's H d there",
    )
    # The paper sends a maximum and a sum where one log-sum-exp says both.
    yield claim("bytes sent per token", "bytes of a part and its query ", sizes[-1]).at_most(
        4 * (4 * (16 + 2) + 4 * 16),
        "the catalogue's H (d + 2) back, and the query",
        because="H (d + 2) numbers of the catalogue and H d of the query, 4 bytes each",
    )
    request.free()
    yield claim("ledger debts", "sum at every moment", max(map(abs, balances))).equals(0, "nothing")
    yield claim("ledger debts", "debts when the request has ended", len(workers.owed)).equals(
        0, "none"
    )
