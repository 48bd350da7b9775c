"""How far heads are from each other: by the rows of their maps, and drawn in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


@method("bert_look_at")
def head_distances(maps: Sequence[Tensor]) -> Tensor:
    """Sum over inputs and queries of the Jensen-Shannon divergence of heads' rows [h, h].

    maps [h, n, m] of each input; JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, in nats.

    >>> one, two = torch.eye(3), torch.full((3, 3), 1 / 3)
    >>> head_distances([torch.stack([one, one, two])])[0].tolist()
    [0.0, 0.0, 0.954...]
    """
    if not maps:
        fail(ShapeError, "maps", "none", "at least one [h, n, m]", "pass the maps of some inputs")
    total = torch.zeros(len(maps[0]), len(maps[0]), dtype=torch.float64)
    for weights in maps:
        if weights.dim() != 3 or len(weights) != len(total):
            fail(
                ShapeError, "maps", shape_of(weights), f"[{len(total)}, n, m], as the first",
                "give the maps of the same heads for each input",
            )  # fmt: skip
        p = weights.double()
        alone = torch.special.entr(p).sum((1, 2))
        for h in range(len(p)):
            both = torch.special.entr((p + p[h]) / 2).sum((1, 2))
            total[h] += both - (alone + alone[h]) / 2
    return total.clamp(min=0)


def plane(distances: Tensor, dimensions: int = 2) -> Tensor:
    """Place heads in the plane by classical scaling: [h, dimensions], near the given distances.

    >>> line = torch.tensor([[0.0, 3.0, 5.0], [3.0, 0.0, 2.0], [5.0, 2.0, 0.0]])
    >>> torch.cdist(plane(line), plane(line)).allclose(line.double(), atol=1e-6)
    True
    """
    h = len(distances)
    if distances.shape != (h, h):
        fail(ShapeError, "distances", shape_of(distances), "[h, h]", "pass all distances")
    if not 1 <= dimensions <= h:
        fail(ValueRangeError, "dimensions", dimensions, f"from 1 to {h}", "take 2")
    center = torch.eye(h, dtype=torch.float64) - 1 / h
    product = -0.5 * center @ distances.double().square() @ center
    values, vectors = torch.linalg.eigh(product)
    found: Tensor = vectors[:, -dimensions:] * values[-dimensions:].clamp(min=0).sqrt()
    return found.flip(1)  # the widest direction first
