"""Planted lines are found from the last queries, and the search names synthetic heads."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.attending import CAUSAL, SITE, sparse_gap
from regard.policies.prompts import MInference, VerticalSlash, last_rows, lines


def with_lines(n: int, columns: list[int], offsets: list[int], sharp: float = 2.0) -> Call:
    """One head whose queries look at some keys, and some distances back.

    Distances are told by turning planes of two channels, as rotary positions are.
    """
    d = 64
    turn = torch.exp(-torch.arange(20) * 0.35)[None] * torch.arange(n)[:, None]
    key = torch.cat((turn.cos(), turn.sin()), 1)
    query = sum(
        torch.cat(((turn - turn[1] * o + turn[0]).cos(), (turn - turn[1] * o).sin()), 1)
        for o in offsets
    )
    q, k = torch.zeros(n, d), torch.zeros(n, d)
    q[:, :40], k[:, :40] = 1.2 * query, 1.2 * key * 2
    q[:, 40] = 1.0
    k[columns, 40] = 60.0
    v = torch.randn(n, d)
    return Call.of(sharp * q[None, None], k[None, None], v[None, None], CAUSAL, site=SITE)


@check("minference", beyond="a kernel that reads single columns: here lines are widened to tiles")
def minference() -> Claims:
    """Planted lines are found from the last queries, and the search names synthetic heads."""
    n, block = 1024, 16
    columns, offsets = [100, 333, 650], [0, 200]
    call = with_lines(n, columns, offsets)
    found = lines(last_rows(call, 64))
    tops = sorted(found[0][0, 0, : n - 64].topk(3).indices.tolist())
    slashes = sorted(found[1][0, 0].topk(2).indices.tolist())
    maker = VerticalSlash(block)
    rows = torch.arange(n // block)
    always = (rows[:, None] == rows) | (rows == 0)
    # What the planted lines cost as tiles: columns, two diagonals of tiles for each planted one (of
    # distance 0: the nearest two), the first column and the diagonal itself.
    t = n // block
    lanes = {o // block + extra for o in offsets for extra in (0, 1)} - {0}
    needed = sum(t - c // block for c in columns) + sum(t - o for o in lanes) + 2 * t
    least = needed / (t * (t + 1) / 2)
    errors = {
        "twice what the planted lines cost": sparse_gap(
            call, always | maker.tiles(call, 2 * least), block
        ),
        "what the planted lines cost": sparse_gap(call, always | maker.tiles(call, least), block),
    }

    restart()
    x = torch.randn(1, 1, n, 64)
    dense = sparse_gap(Call.of(x, x, x, CAUSAL), torch.ones(1, 1, 64, 64, dtype=torch.bool), block)

    # Three heads: near keys; lines; blocks that are alike.
    q, k = (torch.zeros(1, 3, n, 64) for _ in range(2))
    # A score that grows with j is weight that fades over 30 tokens back.
    q[:, 0, :, 0], k[:, 0, :, 0] = 8.0, torch.arange(n) / 30
    q[:, 1], k[:, 1] = call.q[0, 0], call.k[0, 0]
    of_block = torch.randperm(n // block)[:, None].expand(-1, block).flatten() % 4
    groups = torch.eye(64)[of_block]
    q[:, 2], k[:, 2] = 40 * groups, groups + 0.05 * torch.randn(n, 64)
    v = torch.randn(1, 3, n, 64)
    heads = Call.of(q, k, v, CAUSAL, site=SITE)
    one = MInference(block)
    named = one.best_patterns(heads, 0.3)
    yield claim("k_v=T (or all blocks)", "relative difference of all tiles", dense).within(
        1e-5, "dense causal attention", because=FLOAT32
    )
    yield claim("Planted 3 columns", "strongest columns", str(tops)).equals(
        str(columns), "the planted ones"
    )
    yield claim("Planted 3 columns", "strongest diagonals", str(slashes)).equals(
        str(offsets), "the planted ones"
    )
    for keep, error in errors.items():
        yield claim("Planted 3 columns", f"relative error at a budget of {keep}", error).below(
            0.02, "dense attention", because=CATALOGUE
        )
    yield claim("Offline search", "patterns of three heads", " ".join(named)).equals(
        "a_shape vertical_slash block_sparse", "what they were made as"
    )
