"""Folded head embeddings equal heads written out, for few parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.layers.attention import joined, split
from regard.layers.grouped_query import AddedHeadEmbeddings, HeadEmbeddings
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.run.api import attend


@check("mhe")
def head_embeddings() -> Claims:
    """Folded head embeddings equal heads written out, for few parameters."""
    x, h, d = torch.randn(2, 13, 64), 8, 8
    folded = HeadEmbeddings(64, heads=h)
    with torch.no_grad():
        for e in (folded.of_query, folded.of_key, folded.of_value):
            e.normal_()
    q, k, v = (split(m(x), 1) for m in (folded.to_q, folded.to_k, folded.to_v))
    heads = attend(q * (1 + folded.of_query), k * (1 + folded.of_key), v * (1 + folded.of_value))
    times = gap(folded.to_out(joined(heads)), folded(x))

    added = AddedHeadEmbeddings(64, heads=h)
    with torch.no_grad():
        added.of_query.normal_(), added.of_value.normal_()
    q, k, v = (split(m(x), 1) for m in (added.to_q, added.to_k, added.to_v))

    def heads_of(of_key: Tensor, of_value: Tensor) -> Tensor:
        return attend(q + added.of_query, k + of_key, v + of_value)

    zero = torch.zeros(h, 1, d)
    plus = gap(added.to_out(joined(heads_of(zero, added.of_value))), added(x))
    no_matter = gap(heads_of(torch.randn(h, 1, d), zero), heads_of(zero, zero))
    shift = torch.randn(h, 1, d)
    moved = gap(heads_of(zero, shift) - heads_of(zero, zero), shift.expand(2, h, 13, d))
    counts = {}
    for heads_ in (8, 16):
        layer = HeadEmbeddings(64, heads=heads_, head_dim=d)
        counts[heads_] = sum(p.numel() for p in layer.parameters()) - layer.to_out.weight.numel()
    yield claim("Parameter count", "parameters of q, k, v at 8 heads", counts[8]).equals(
        3 * 64 * d + 3 * 8 * d, "3 D d + 3 h d"
    )
    yield claim("Parameter count", "parameters of q, k, v at 16 heads", counts[16]).equals(
        3 * 64 * d + 3 * 16 * d, "3 D d + 3 h d"
    )
    yield claim("expanding heads", "difference of the folded form", times).within(
        1e-6, "heads written out", because=CATALOGUE
    )
    yield claim("ADD:", "difference of the added form", plus).within(
        1e-5, "heads written out", because=FLOAT32
    )
    yield claim("ADD:", "change by another e_k", no_matter).within(1e-5, "none", because=FLOAT32)
    yield claim("ADD:", "change by another e_v, minus that vector", moved).within(
        1e-5, "that vector", because=FLOAT32
    )
