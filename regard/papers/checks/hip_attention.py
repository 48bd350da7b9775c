"""Scores grow with the log of the length; smooth keys are found, noise is not."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.attending import CAUSAL, SITE, sparse_gap
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.prompts import Hip, last_rows
from regard.policies.registry import policy
from regard.policies.tiling import causal_tiles
from regard.run.counting import counted
from regard.verbs import shrink


class _Counted(Hip):
    """Count rounds of scoring."""

    scored = 0

    def _score(self, q: Tensor, k: Tensor, low: Tensor, high: Tensor) -> Tensor:
        self.scored += 2
        return super()._score(q, k, low, high)


@check(
    "hip_attention",
    beyond="millions of tokens, and times on a GPU",
)
def hip() -> Claims:
    """Scores grow with the log of the length; smooth keys are found, noise is not."""
    block = 16

    def tree(n: int, smooth: bool, keep: float) -> tuple[float, float]:
        restart()
        walk = torch.randn(1, 2, n, 16)
        if smooth:  # keys that change slowly
            kernel = torch.hann_window(257)[None, None] / 128
            flat = torch.nn.functional.pad(walk.transpose(2, 3).reshape(-1, 1, n), (128, 128))
            walk = torch.nn.functional.conv1d(flat, kernel).view(1, 2, 16, n).transpose(2, 3)
            walk = 6 * walk / walk.std()
        # Each query looks for a key far back: the keys there are much alike, or not at all.
        q = 2 * walk.roll(n // 3, 2)
        call = Call.of(q, walk, walk, CAUSAL, site=SITE)
        counting = _Counted(block)
        chosen = counting.tiles(call, keep) & causal_tiles(call, block)
        # Mass of the keys chosen, for the last row of tiles, against each query's best as many.
        rows = last_rows(call, block)
        own = chosen[:, :, -1].repeat_interleave(block, -1)[:, :, None]
        count = int(own.sum(-1).max())
        best = rows.topk(count, dim=-1).values.sum(-1)
        return float(((rows * own).sum(-1) / best).mean()), counting.scored / rows.shape[1]

    mass, _ = tree(4096, True, 0.25)
    noise, _ = tree(4096, False, 0.25)
    # The same number of segments at 4 times the length.
    few, many = tree(1024, True, 0.25)[1], tree(4096, True, 0.0625)[1]
    x = torch.randn(1, 1, 512, 16)
    whole = sparse_gap(
        Call.of(x, x, x, CAUSAL), Hip(block).tiles(Call.of(x, x, x, CAUSAL), 2.0), block
    )
    made = llama()
    ids = torch.randint(3, 64, (1, 600))

    def step(keep: int) -> tuple[float, float]:
        """Difference of a decoded token's logits, and keys that its heads read."""
        with torch.no_grad():
            plain = made(ids).logits[:, -1]
            with shrink(made, policy("hip", block=16), keep=keep, check=False):
                cache = made(ids[:, :-1]).past_key_values
                before = counted()
                out = made(ids[:, -1:], past_key_values=cache).logits[:, -1]
        return gap(out, plain), counted().less(before).pairs

    all_of_them, few_of_them = step(600), step(128)
    yield claim("k >= T equals", "difference of a decoded token's logits", all_of_them[0]).within(
        1e-5, "dense attention", because=CATALOGUE
    )
    yield claim(
        "k >= T equals", "pairs of a step that reads 128 of 600 keys", few_of_them[1]
    ).at_most(
        all_of_them[1], "of a step that reads all", times=128 / 600, because="128 of 600 keys"
    )
    yield claim("k >= T equals", "relative difference", whole).within(
        1e-5, "dense causal attention", because=CATALOGUE
    )
    yield claim("Scores computed per", "rounds more at 4 times the length", many - few).equals(
        2.0, "2"
    )
    yield claim("With keys varying", "mass of the best keys that is found", mass).above(
        0.9, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("with white-noise keys", "mass found of noise", noise).below(
        mass, "of smooth keys", plus=-0.05, because="it falls: by five points"
    )
