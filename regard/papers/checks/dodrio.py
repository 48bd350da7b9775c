"""Planted heads have their scores, and the exported edges are the weights."""

from __future__ import annotations

import torch

from regard.analysis.overview import exported, overview
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.sentences import sentence


@check("dodrio", beyond="the interactive page; how it scales the scores is not known for sure")
def viewer() -> Claims:
    """Planted heads have their scores, and the exported edges are the weights."""
    trees = [sentence() for _ in range(30)]
    saliencies = [torch.rand(tree.words) ** 3 for tree in trees]
    maps = []
    for tree, saliency in zip(trees, saliencies, strict=True):
        n = tree.words
        felt = (saliency / saliency.sum()).expand(n, n)
        uniform, chance = torch.full((n, n), 1 / n), (3 * torch.randn(n, n)).softmax(-1)
        maps.append(torch.stack([torch.eye(n)[tree.heads], felt, uniform, chance]))
    cells = overview({0: maps}, trees, saliencies)
    edges = exported(cells, {0: maps[0]}, 0.2)["edges"]
    back = torch.zeros_like(maps[0])
    for name, each in edges.items():
        for i, j, weight in each:
            back[int(name.split(".")[1]), i, j] = weight
    # because: exported with this threshold
    exact = torch.equal(back, torch.where(maps[0] >= 0.2, maps[0], 0.0))
    even = abs(cells[2].confidence - 1 / trees[0].words)
    yield claim("Planted head following", "syntactic score", cells[0].syntactic).equals(1.0, "1")
    yield claim("Planted head following", "its semantic score", cells[0].semantic).within(
        0.15,
        "that of a random head",
        value=cells[3].semantic,
        because="30 sentences of 10 words: two standard errors",
    )
    yield claim("a head whose column sums", "semantic score", cells[1].semantic).within(
        1e-5, "1", value=1, because=FLOAT32
    )
    yield claim("uniform head has", "distance of its confidence", even).within(
        1e-6, "1/T", because=FLOAT32
    )
    yield claim("Exported edge weights", "equal bit for bit", exact).equals(
        True, "A above the threshold"
    )
