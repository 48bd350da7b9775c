"""Syntax in heads: single heads, a probe over all of them, and coreference.

Maps are by word ([h, n, n], see `words.word_maps`), trees give the head of each word. After Clark
2019, "What does BERT look at?".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method

DIRECTIONS = ("to the head", "from the head")


@dataclass(frozen=True)
class DependencyTree:
    """A dependency tree: `heads` [n] with -1 where a word has none, and the name of each link.

    `left_out` bool [n] marks words to ignore, such as [SEP].

    >>> DependencyTree(torch.tensor([1, -1, 1]), ("det", "root", "obj")).words
    3
    """

    heads: Tensor
    relations: tuple[str, ...]
    left_out: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.relations)
        if self.heads.shape != (n,):
            fail(
                ShapeError, "heads", shape_of(self.heads), f"{n} heads, as relations",
                "give each word its head, or -1",
            )  # fmt: skip
        if bool(((self.heads < -1) | (self.heads >= n)).any()):
            fail(
                ValueRangeError, "heads", self.heads.tolist(), f"from -1 to {n - 1}", "count words"
            )

    @property
    def words(self) -> int:
        """How many words there are."""
        return len(self.relations)


@dataclass(frozen=True)
class Skill:
    """Accuracy by relation: of each head in each direction [2, heads], and of the best offset.

    `offsets[relation]` is (offset, accuracy) of the baseline of a fixed offset.
    """

    accuracy: Mapping[str, Tensor]
    offsets: Mapping[str, tuple[int, float]]
    links: Mapping[str, int]

    def best(self, relation: str) -> tuple[int, str, float]:
        """Return the head that knows a relation best: its number, direction, and accuracy."""
        found = self.accuracy[relation]
        place = int(found.argmax())
        way, head = divmod(place, found.shape[1])
        return head, DIRECTIONS[way], float(found.flatten()[place])

    def by_head(self) -> Tensor:
        """Return the best of each head over directions and relations [heads]."""
        return torch.stack([x.amax(0) for x in self.accuracy.values()]).amax(0)


@method(
    "bert_look_at",
    call="import torch\n"
    "from regard.analysis.dependency import DependencyTree, dependency_skill\n"
    "tree = DependencyTree(torch.tensor([1, -1, 1]), ('det', 'root', 'obj'))\n"
    "skill = dependency_skill([torch.rand(8, 3, 3)], [tree])",
)
def dependency_skill(
    maps: Sequence[Tensor], trees: Sequence[DependencyTree], *, farthest: int = 10
) -> Skill:
    """Return how often the word that gets (or gives) the most weight is the head of a word.

    maps [h, n, n] of each sentence. The baseline is the best fixed offset up to `farthest`.

    >>> follows = torch.eye(3)[torch.tensor([1, 1, 1])][None]
    >>> tree = DependencyTree(torch.tensor([1, -1, 1]), ("a", "b", "a"))
    >>> dependency_skill([follows], [tree]).best("a")
    (0, 'to the head', 1.0)
    """
    hits: dict[str, Tensor] = {}
    many: dict[str, int] = {}
    far: dict[str, dict[int, int]] = {}
    for weights, tree in zip(maps, trees, strict=True):
        n = tree.words
        if weights.dim() != 3 or weights.shape[1:] != (n, n):
            fail(
                ShapeError, "maps", shape_of(weights), f"[h, {n}, {n}]",
                "give maps by word, of one sentence each",
            )  # fmt: skip
        weights = weights.float().clone()
        weights.diagonal(0, 1, 2).fill_(-1)  # no word is its own head
        if tree.left_out is not None:
            weights[:, :, tree.left_out] = -1
            weights[:, tree.left_out] = -1
        guessed = torch.stack([weights.argmax(2), weights.argmax(1)])  # [2, h, n]
        for word in (tree.heads >= 0).nonzero()[:, 0].tolist():
            relation, head = tree.relations[word], int(tree.heads[word])
            hits[relation] = hits.get(relation, 0) + (guessed[..., word] == head)
            many[relation] = many.get(relation, 0) + 1
            counts = far.setdefault(relation, {})
            counts[head - word] = counts.get(head - word, 0) + 1
    accuracy = {r: x.double() / many[r] for r, x in hits.items()}
    offsets = {}
    for relation, counts in far.items():
        near = {o: c for o, c in counts.items() if abs(o) <= farthest} or {0: 0}
        best = max(near, key=lambda o: (near[o], -abs(o)))
        offsets[relation] = (best, near[best] / many[relation])
    return Skill(accuracy, offsets, many)


class AttentionProbe(nn.Module):
    """Predict the head of each word from maps alone: two weights for each attention head.

    p(i is the head of j)  ~  exp(sum_k w_k A^k_ij + u_k A^k_ji).

    >>> AttentionProbe(4)(torch.rand(4, 5, 5)).shape
    torch.Size([5, 5])
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(heads))
        self.u = nn.Parameter(torch.zeros(heads))

    def forward(self, weights: Tensor) -> Tensor:
        """Return logits [n words, n heads of them] of maps [h, n, n]."""
        scores = torch.einsum("h,hij->ji", self.w, weights)
        scores = scores + torch.einsum("h,hji->ji", self.u, weights)
        return scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)

    def fit(
        self,
        maps: Sequence[Tensor],
        trees: Sequence[DependencyTree],
        steps: int = 150,
        rate: float = 0.1,
    ) -> AttentionProbe:
        """Learn the weights from trees by Adam."""
        adam = torch.optim.Adam(self.parameters(), rate)
        for _ in range(steps):
            adam.zero_grad()
            losses = [
                nn.functional.cross_entropy(self(x.float())[t.heads >= 0], t.heads[t.heads >= 0])
                for x, t in zip(maps, trees, strict=True)
            ]
            torch.stack(losses).mean().backward()
            adam.step()
        return self

    def score(self, maps: Sequence[Tensor], trees: Sequence[DependencyTree]) -> float:
        """Return the share of words whose head is said right (unlabeled attachment score)."""
        right = total = 0
        for weights, tree in zip(maps, trees, strict=True):
            there = tree.heads >= 0
            with torch.no_grad():
                said = self(weights.float()).argmax(1)
            right += int((said == tree.heads)[there].sum())
            total += int(there.sum())
        return right / max(total, 1)


def antecedents(weights: Tensor, mentions: Sequence[int], clusters: Sequence[int]) -> Tensor:
    """Return how often each head looks, among earlier mentions, at one of the same thing [h].

    `mentions` are the places of mentions' head words in order, `clusters` what each is about;
    mentions that are the first of their cluster do not count.

    >>> antecedents(torch.eye(4)[torch.tensor([0, 0, 0, 1])][None], [0, 1, 3], [7, 8, 8])
    tensor([1.], dtype=torch.float64)
    """
    hits, many = torch.zeros(weights.shape[0], dtype=torch.float64), 0
    for place in range(1, len(mentions)):
        if clusters[place] not in clusters[:place]:
            continue
        earlier = torch.tensor(mentions[:place], device=weights.device)
        best = weights[:, mentions[place], earlier].argmax(1).cpu()
        same = torch.tensor([c == clusters[place] for c in clusters[:place]])
        hits, many = hits + same[best], many + 1
    return hits / max(many, 1)
