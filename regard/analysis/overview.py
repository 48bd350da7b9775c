"""An overview of heads: confidence, and agreement with syntax and with saliency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.dependency import DependencyTree, dependency_skill
from regard.core.errors import ShapeError, ValueRangeError, fail, need, shape_of
from regard.core.files import word_for
from regard.core.method import method
from regard.core.picture_files import write_figure


@dataclass(frozen=True)
class HeadCell:
    """One cell of the overview: scores from 0 to 1, and the relation a head knows best."""

    layer: int
    head: int
    confidence: float
    syntactic: float
    semantic: float
    relation: str


def confidence(weights: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """Mean over queries of the largest weight [h], of maps [h, n, m]; `keep` bool [m] of tokens.

    >>> confidence(torch.full((2, 4, 4), 0.25))
    tensor([0.2500, 0.2500])
    """
    if keep is not None:
        weights = weights[:, keep][:, :, keep]
    return weights.amax(2).mean(1)


def semantic_score(weights: Tensor, saliency: Tensor, *, definition: str = "distance") -> Tensor:
    """Return the similarity [h] of attention per token to saliency [m], both normalized to sum 1.

    "distance" is 1 / (1 + |a - s|), "cosine" the cosine; the paper's own scaling is not sure.

    >>> saliency = torch.tensor([1.0, 3.0])
    >>> semantic_score(torch.tensor([[[0.25, 0.75], [0.25, 0.75]]]), saliency)
    tensor([1.])
    """
    if saliency.shape != weights.shape[2:]:
        fail(
            ShapeError, "saliency", shape_of(saliency), f"[{weights.shape[2]}]",
            "give every token its saliency",
        )  # fmt: skip
    got, wanted = weights.sum(1), saliency.abs().to(weights)
    got, wanted = got / got.sum(1, keepdim=True), wanted / wanted.sum().clamp_min(1e-30)
    if definition == "distance":
        return 1 / (1 + (got - wanted).norm(dim=1))
    if definition == "cosine":
        return torch.cosine_similarity(got, wanted[None], dim=1)
    fail(ValueRangeError, "definition", repr(definition), "'distance' or 'cosine'", "name one")


@method(
    "dodrio",
    call="from regard.analysis.overview import draw_overview, overview\n"
    "# cells = overview({0: [maps]}, trees, saliencies); draw_overview(cells, to='heads.png')",
)
def overview(
    maps: dict[int, Sequence[Tensor]],
    trees: Sequence[DependencyTree],
    saliencies: Sequence[Tensor],
    *,
    definition: str = "distance",
) -> list[HeadCell]:
    """Score every head of every layer over sentences: maps[layer] is [h, n, n] for each sentence.

    The syntactic score is the best accuracy over relations and both directions (Wang 2021).
    """
    cells = []
    for layer, each in maps.items():
        skill = dependency_skill(each, trees)
        sure = torch.stack([confidence(x) for x in each]).mean(0)
        like = torch.stack([
            semantic_score(x, s, definition=definition)
            for x, s in zip(each, saliencies, strict=True)
        ]).mean(0)  # fmt: skip
        best = skill.by_head().tolist()
        for head in range(len(sure)):
            known = {r: float(x[:, head].max()) for r, x in skill.accuracy.items()}
            relation = max(known, key=known.__getitem__)
            cells.append(
                HeadCell(layer, head, float(sure[head]), best[head], float(like[head]), relation)
            )
    return cells


def exported(
    cells: Sequence[HeadCell], maps: dict[int, Tensor], threshold: float = 0.1
) -> dict[str, Any]:
    """Everything a viewer needs, for JSON: cells, and each head's edges of at least `threshold`.

    maps[layer] [h, n, n] are those of one sentence; an edge is [query, key, weight], exact.

    >>> exported([], {0: torch.tensor([[[0.05, 0.95]]])})["edges"]
    {'0.0': [[0, 1, 0.949...]]}
    """
    edges = {}
    for layer, weights in maps.items():
        for head, each in enumerate(weights):
            there = (each >= threshold).nonzero().tolist()
            edges[f"{layer}.{head}"] = [[i, j, each[i, j].item()] for i, j in there]
    return {"heads": [asdict(cell) for cell in cells], "threshold": threshold, "edges": edges}


def draw_overview(cells: Sequence[HeadCell], to: str, *, overwrite: bool = False) -> None:
    """Draw the grid: red is semantic, blue syntactic, and a large dot is sure of itself.

    A picture of the same cells that is there is replaced, anything else only where `overwrite` is
    true.
    """
    figure = need("matplotlib.figure", "see", "draws the overview").Figure(layout="constrained")
    axes = figure.add_subplot(
        xlabel="head", ylabel="layer", title="syntactic (blue), semantic (red)"
    )
    axes.scatter(
        [c.head for c in cells], [c.layer for c in cells],
        s=[20 + 380 * c.confidence for c in cells],
        c=[(min(c.semantic, 1.0), 0.25, min(c.syntactic, 1.0)) for c in cells],
    )  # fmt: skip
    axes.invert_yaxis()
    write_figure(figure, to, origin=word_for(*cells), overwrite=overwrite)
