"""How few dimensions a head's queries and keys need: attention in a subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.models.site import Site
from regard.models.stage import Stage


def subspace(q: Tensor, k: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Bases [d, rank] of the directions of queries and of keys that carry most of the scores.

    q [n, d] and k [m, d] are samples of one head. The directions are those that the largest
    singular parts of q k^T use, found from two d x d factors.
    """
    if not 1 <= rank <= q.shape[1]:
        fail(ValueRangeError, "rank", rank, f"1 to {q.shape[1]}", "keep some dimensions")
    left, right = torch.linalg.qr(q.double()).R, torch.linalg.qr(k.double()).R
    u, _, vt = torch.linalg.svd(left @ right.T)
    bases = [torch.linalg.qr(x).Q for x in (left.T @ u[:, :rank], right.T @ vt[:rank].T)]
    return bases[0], bases[1]


class Compressed(Stage):
    """Attend with some heads' queries and keys projected to a subspace.

    `bases[site, head]` is what `subspace` gives. With as many dimensions as the head has, nothing
    changes.
    """

    def __init__(
        self, bases: dict[tuple[Site, int], tuple[Tensor, Tensor]], where: Any = None
    ) -> None:
        super().__init__(where)
        self.bases = bases

    def before(self, call: Call) -> Call:
        """Project: keys by query head, so grouped keys are given to each of theirs."""
        chosen = {head: x for (site, head), x in self.bases.items() if site == call.site}
        if not chosen:
            return call
        q, k = call.q.clone(), expand_heads(call.k, call.h).clone()
        for head, (a, b) in chosen.items():
            a, b = a.to(q.dtype), b.to(k.dtype)
            q[:, head] = q[:, head] @ a @ a.T
            k[:, head] = k[:, head] @ b @ b.T
        return call.replace(q=q, k=k, v=expand_heads(call.v, call.h))


@dataclass(frozen=True)
class Choices:
    """Questions to one head: `q` [n, d] of their last tokens, `k` [n, items, d] of the labels.

    `right` [n] is the item that each question is answered by.
    """

    q: Tensor
    k: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        n = len(self.q)
        if self.k.dim() != 3 or len(self.k) != n or self.k.shape[2] != self.q.shape[1]:
            fail(
                ShapeError, "k", shape_of(self.k), f"[{n}, items, {self.q.shape[1]}]",
                "pass the keys of all labels of each question",
            )  # fmt: skip
        if self.right.shape != (n,):
            fail(ShapeError, "right", shape_of(self.right), f"[{n}]", "pass the number of an item")

    def centered(self) -> tuple[Tensor, Tensor]:
        """Return q, and k less the mean of each question's labels, which softmax ignores."""
        return self.q.double(), self.k.double() - self.k.double().mean(1, keepdim=True)

    def accuracy(self, bases: tuple[Tensor, Tensor] | None = None) -> float:
        """Share of questions whose right label has the largest score, in a subspace or in all."""
        q, k = self.centered()
        if bases is not None:
            q, k = q @ bases[0] @ bases[0].T, k @ bases[1] @ bases[1].T
        chosen = torch.einsum("nd,nid->ni", q, k).argmax(1)
        return float((chosen == self.right.to(chosen)).double().mean())

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean query of each item's questions, less that of all, and its mean key: [items, d]."""
        q, k = self.centered()
        items = range(k.shape[1])
        by_item = torch.stack([q[self.right.to(q.device) == i].mean(0) for i in items])
        return by_item - by_item.mean(0), k.mean(0)


@dataclass(frozen=True)
class Transfer:
    """How one kind of label is read in the subspace of another.

    `query_cosines` and `key_cosines` [items] compare the n-th item of both kinds. `accuracy` is the
    second kind's in all dimensions, `own` in its own subspace, `carried` in that of the first kind.
    """

    query_cosines: Tensor
    key_cosines: Tensor
    accuracy: float
    own: float
    carried: float


@method(
    "chinchilla_mcq_circuit",
    call="import torch\n"
    "from regard.analysis.compress import Choices, transfer\n"
    "# q and k of one head, where labels are letters, and where they are numbers\n"
    "letters, numbers = (\n"
    "    Choices(torch.randn(40, 16), torch.randn(40, 4, 16), torch.arange(40) % 4)\n"
    "    for _ in range(2)\n"
    ")\n"
    "print(transfer(letters, numbers, rank=3).carried)",
)
def transfer(first: Choices, second: Choices, rank: int) -> Transfer:
    """Ask whether labels of another kind (numbers for letters) use the same few directions.

    The subspace of `rank` dimensions is made from `first` alone. Where "the n-th item" is one
    feature whatever its label, `carried` stays near `accuracy` and the cosines near 1; where each
    kind has directions of its own, `carried` falls to one over the items.
    """
    if first.k.shape[1:] != second.k.shape[1:]:
        items, d = first.k.shape[1:]
        fail(
            ShapeError, "second.k", shape_of(second.k), f"[n, {items}, {d}]",
            "ask both kinds with the same items, of the same head",
        )  # fmt: skip
    bases = []
    for kind in (first, second):
        q, k = kind.centered()
        bases.append(subspace(q, k.flatten(0, 1), rank))
    pairs = list(zip(first.means(), second.means(), strict=True))
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in pairs]
    return Transfer(
        cosines[0], cosines[1], second.accuracy(), second.accuracy(bases[1]),
        second.accuracy(bases[0]),
    )  # fmt: skip
