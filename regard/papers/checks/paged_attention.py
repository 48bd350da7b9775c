"""Any mix of appends, forks and ends reads as contiguous keys, and every page comes back."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from regard.core.call import Call
from regard.memories import Paged, Pool
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import seed
from regard.papers.shared.measure import gap
from regard.run.api import attend
from regard.run.runner import run


@check("paged_attention", beyond="scheduling and swapping of a server, and its throughput")
def pages() -> Claims:
    """Any mix of appends, forks and ends reads as contiguous keys, and every page comes back."""
    size, heads, d = 16, 2, 8
    pool, rng = Pool(size), random.Random(seed())
    live: list[tuple[Paged, Tensor]] = []
    worst, most_waste, sound = 0.0, 0, True
    for turn in range(200):
        act = rng.random()
        if not live or act < 0.15:  # because: a mix of all acts
            x = torch.randn(1, heads, rng.randint(1, 40), d)
            memory = Paged(pool)
            memory.extend(x, x)
            live.append((memory, x))
        elif act < 0.65:  # because: a mix of all acts
            place = rng.randrange(len(live))
            memory, held = live[place]
            x = torch.randn(1, heads, rng.randint(1, 5), d)
            memory.extend(x, x)
            live[place] = memory, torch.cat((held, x), 2)
        elif act < 0.85:  # because: a mix of all acts
            memory, held = rng.choice(live)
            live.append((memory.fork(), held))
        else:
            live.pop(rng.randrange(len(live)))[0].free()
        if live and turn % 4 == 0:
            memory, held = rng.choice(live)
            q = torch.randn(1, 4, 1, d)
            wanted = attend(q, held, held)
            worst = max(worst, gap(run(Call(q, memory.keys())).out, wanted))
        held_pages = {p for m, _ in live for t in m.tables or () for p in t}
        sound &= not held_pages & set(pool.free) and len(held_pages) == pool.held
        waste = [len(m.tables[0]) * size - m.seen for m, _ in live if m.tables]
        most_waste = max([most_waste, *waste])
    for memory, _ in live:
        memory.free()
    empty = pool.held

    beams = Paged(pool)
    x = torch.randn(1, heads, 100, d)
    beams.extend(x, x)
    beams.repeat(4, 1)
    yield claim("Random interleaving", "largest difference", worst).within(
        1e-6, "contiguous attention", because=CATALOGUE
    )
    yield claim("Random interleaving", "no page is both free and held", sound).equals(
        True, "always"
    )
    yield claim("Random interleaving", "most slots wasted by a sequence", most_waste).below(
        size, "block size"
    )
    yield claim("Random interleaving", "pages left", empty).equals(0, "none")
    yield claim("beams forked", "pages of four beams of 100 tokens", pool.held).equals(
        7, "100/16 rounded up, once"
    )
