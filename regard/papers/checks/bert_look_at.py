"""A planted head is found by skill and by the probe; copies lie at distance 0."""

from __future__ import annotations

import torch

from regard.analysis.dependency import AttentionProbe, dependency_skill
from regard.analysis.head_distance import head_distances
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.sentences import sentence


@check("bert_look_at", beyond="BERT on parsed text, and GloVe vectors in the probe")
def grammar() -> Claims:
    """A planted head is found by skill and by the probe; copies lie at distance 0."""
    trees = [sentence() for _ in range(40)]
    maps = []
    for tree in trees:
        n = tree.words
        x = (2 * torch.randn(8, n, n)).softmax(-1)
        x[3] = 0.1 * x[3] + 0.9 * torch.eye(n)[tree.heads]
        x[5] = x[1]
        x[6] = torch.eye(n)[(torch.arange(n) + 1).clamp(max=n - 1)]  # looks at the next word
        maps.append(x)
    skill = dependency_skill(maps, trees)
    best = {r: skill.best(r) for r in ("next", "back", "any")}
    offset = skill.offsets["next"]
    by_next = float(skill.accuracy["next"][0, 6])
    probe = AttentionProbe(8).fit(maps[:30], trees[:30])
    sizes = torch.maximum(probe.w.abs(), probe.u.abs()).detach()
    apart = head_distances(maps)
    score = probe.score(maps[30:], trees[30:])
    yield claim("Plant a head", "first head in relations to a word before", best["back"][0]).equals(
        3, "the planted one"
    )
    yield claim("Plant a head", "first head in relations of any distance", best["any"][0]).equals(
        3, "the planted one"
    )
    yield claim("Plant a head", "largest weight in the probe", int(sizes.argmax())).equals(
        3, "the planted one"
    )
    yield claim("Plant a head", "probe on other sentences", score).above(
        0.9,
        "the planted head alone",
        because="it puts 0.9 of its weight on the parent, which is then its first choice",
    )
    yield claim("Plant a head", "distance of two copies", float(apart[1, 5])).within(
        1e-9, "0", because=FLOAT64
    )
    yield claim("Best offset baseline", "accuracy of the best offset", offset[1]).equals(
        by_next, "a planted next-word head"
    )
