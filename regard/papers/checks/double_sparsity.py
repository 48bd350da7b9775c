"""A few large channels tell which keys matter; reads are counted."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.attending import SITE
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama, step_of
from regard.policies.selecting import DoubleSparsity
from regard.verbs import shrink


@check(
    "double_sparsity",
    narrowed={
        "Keys with 4 of 64": "channels are found on the prompt at hand, not offline on another text"
    },
    beyond="offloading with prefetch, 4-bit labels",
)
def double() -> Claims:
    """A few large channels tell which keys matter; reads are counted."""
    m, d, top = 1024, 64, 64

    def recall(scale: float, by_chance: bool, channels: float = 4 / 64) -> float:
        hits = 0.0
        for draw in range(12):
            restart(f"keys {draw}")
            k, q = torch.randn(1, 1, m, d), torch.randn(1, 1, m, d)
            big = torch.randperm(d)[:4]
            k[..., big] *= scale
            own = DoubleSparsity(channels=channels, random_channels=by_chance)
            step = step_of(q, k, k, SITE)
            at = own.chosen(step)
            worth = (q[:, :, -1].gather(2, at) * k[0, 0][:, at[0, 0]]).sum(-1).flatten()
            truth = (k[0, 0] @ q[0, 0, -1]).topk(top).indices
            hits += len(set(worth.topk(top).indices.tolist()) & set(truth.tolist())) / top
        return hits / 12

    large, medium = recall(20, False), recall(8, False)
    chance, whole = recall(20, True), recall(1, False, 1.0)
    made = llama()
    ids = torch.randint(3, 64, (1, 300))
    with torch.no_grad():
        plain = made(ids).logits[:, -1]

        def last(keep: float | int) -> tuple[Tensor, float]:
            with shrink(made, "double_sparsity", keep=keep, check=False) as shrunk:
                cache = made(ids[:, :-1]).past_key_values
                before = sum(x.flops for x in shrunk.stage.costs.values())
                out = made(ids[:, -1:], past_key_values=cache).logits[:, -1]
                spent = sum(x.flops for x in shrunk.stage.costs.values()) - before
            return out, spent / (4 * 4 * 2)  # elements read by a head, in 4 layers of 4 heads

        dense, (_, read) = gap(last(300)[0], plain), last(40)
    yield claim("r=d selects", "recall of all channels", whole).above(
        0.999, "the exact top-k", because="ties of float32 scores"
    )
    yield claim("k=T equals dense", "difference of logits", dense).within(
        1e-4, "the model", because=FLOAT32
    )
    yield claim("Keys with 4 of 64", "recall at 20x", large).within(
        0.1, "the catalogue saw 0.8", value=0.8, because="about: 12 draws of 64 keys"
    )
    yield claim("Keys with 4 of 64", "recall at 8x", medium).within(
        0.1, "the catalogue saw 0.6", value=0.6, because="about: 12 draws of 64 keys"
    )
    yield claim("Keys with 4 of 64", "recall of random channels", chance).below(
        0.15, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("Element reads per step", "elements read by a step", read).equals(
        300 * 4 + 2 * 40 * 16.0, "T r + 2 k d, of 300 tokens, 4 channels of 16 and 40 keys"
    )
