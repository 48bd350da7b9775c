"""Heads that are copies are clustered and lossless; clusters by chance lose more."""

from __future__ import annotations

import torch

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.registry import policy
from regard.policies.sharing import leaders
from regard.verbs import shrink


@check(
    "chai",
    beyond="the elbow that chooses the number of clusters by layer: here it is the budget",
)
def clustered() -> Claims:
    """Heads that are copies are clustered and lossless; clusters by chance lose more."""
    # In float64: logits of two layers in float32 differ by more than the catalogue's 1e-6.
    made = llama(layers=2, heads=8, kv_heads=8).double()
    with torch.no_grad():
        for layer in made.model.layers:
            for name in ("q_proj", "k_proj"):
                w = getattr(layer.self_attn, name).weight.view(8, 8, 64)
                w[1::2] = w[::2]
    ids = torch.randint(3, 64, (1, 60))
    with torch.no_grad():
        plain = made(ids).logits

        def cost(keep: float, **settings: object) -> tuple[float, float]:
            one = policy("chai", **settings)
            with shrink(made, one, keep=keep, check=False) as shrunk:
                lost = gap(made(ids).logits, plain)
                report = shrunk.report()
            return lost, report.bytes / report.full_bytes

        whole, (twins, share) = cost(1.0)[0], cost(0.5)
        led = leaders(torch.rand(1, 3, 8, 8).repeat_interleave(2, 1), 3).tolist()
    # Heads that differ, so that no cluster is lossless: the mean of several, each drawn anew.
    lost = []
    for _ in range(8):
        with torch.no_grad():
            for layer in made.model.layers:
                for name in ("q_proj", "k_proj"):
                    w = getattr(layer.self_attn, name).weight.view(8, 8, 64)
                    w[1::2] = w[::2] + 0.3 * w[::2].std() * torch.randn_like(w[::2])
            plain = made(ids).logits
            lost.append([cost(0.5)[0], cost(0.5, random_clusters=True)[0]])
    loose, loose_chance = torch.tensor(lost).mean(0).tolist()
    # Kept beside, in 8 bytes each: the leader of each query head, and the 4 heads whose keys stay.
    table = (8 + 4) * 8 / (2 * 8 * 60 * 8 * 8)
    yield claim("k_l=H gives dense", "difference of logits", whole).within(
        1e-9, "the model", because=FLOAT64
    )
    yield claim("duplicating heads", "difference with 4 clusters of 8 heads", twins).within(
        1e-6, "the model", because=CATALOGUE
    )
    yield claim("duplicating heads", "clusters of planted twins", str(led)).equals(
        "[0, 0, 2, 2, 4, 4]", "the twins"
    )
    yield claim("cache bytes =", "bytes of full", share).within(
        1e-6, "(k_l + H) / 2H, and the table", value=0.75 + table, because=FLOAT64
    )
    yield claim(
        "random clusters", "difference of CHAI's clusters, twins not quite alike, mean of 8", loose
    ).below(loose_chance, "random clusters of the same size")
