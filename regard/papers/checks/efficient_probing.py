"""No opinion is the mean; queries are heads of one query each; a marked patch is found."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.pooling import EfficientProbing
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


def _marked_patch(attends: bool) -> float:
    restart()
    classes, mark = torch.randn(8, 32), torch.randn(32)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        wanted, place = torch.randint(0, 8, (size,)), torch.randint(0, 64, (size,))
        x = classes[torch.randint(0, 8, (size, 64))]
        x[torch.arange(size), place] = classes[wanted] + mark
        return x + 0.3 * torch.randn_like(x), wanted

    probe = EfficientProbing(32, queries=4)
    norm, last = nn.BatchNorm1d(32, affine=False), nn.Linear(32, 8)

    def scores(x: Tensor) -> Tensor:
        pooled = probe(x) if attends else probe.to_v(x.mean(1))
        answer: Tensor = last(norm(pooled))
        return answer

    def loss() -> Tensor:
        x, wanted = batch(64)
        return F.cross_entropy(scores(x), wanted)

    fit([*probe.parameters(), *last.parameters()], loss, 400, 1e-2)
    norm.eval()
    x, wanted = batch(1024)
    return float((scores(x).argmax(-1) == wanted).float().mean())


@check("efficient_probing")
def probing() -> Claims:
    """No opinion is the mean; queries are heads of one query each; a marked patch is found."""
    probe, x = EfficientProbing(64, queries=8), torch.randn(3, 20, 64)
    with torch.no_grad():
        saved = probe.queries.clone()
        probe.queries.zero_()
        mean = gap(probe(x), probe.to_v(x.mean(1)))
        probe.queries.copy_(saved.normal_())
    slices = probe.to_v(x).unflatten(-1, (8, 8))
    heads = [
        F.scaled_dot_product_attention(u.expand(3, 1, 64), x, slices[:, :, i], scale=1 / 8)
        for i, u in enumerate(probe.queries)
    ]
    alone = gap(probe(x), torch.cat(heads, -1).flatten(1))
    accuracy = {"attention": _marked_patch(True), "mean": _marked_patch(False)}
    yield claim("U=0 gives uniform", "difference", mean).within(
        1e-6, "W_V of the mean token", because=CATALOGUE
    )
    yield claim("Equals M single-head", "difference", alone).within(
        1e-5, "torch's attention, a head at a time", because=FLOAT32
    )
    yield claim("Class in one marked", "accuracy", accuracy["attention"]).above(
        0.9,
        "the catalogue saw 0.97",
        because="within the spread of 1,024 questions and another training",
    )
    yield claim("Class in one marked", "accuracy of a mean pool", accuracy["mean"]).below(
        0.4, "the catalogue saw 0.27", because="within the spread of another training"
    )
