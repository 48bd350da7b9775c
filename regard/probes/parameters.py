"""Analyses of heads from weights alone: copying, composition, maps of tokens.

These run no forward. Grouped keys and values are read by every query head of their group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, ValueRangeError, fail
from regard.core.method import method
from regard.models.attach import hook_of
from regard.models.projections import HeadWeights, head_weights, named_sites
from regard.models.residual import embedding_of, precise, unembedding_of
from regard.models.site import Site, Sites
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.probes.scores import Scores

TOKENS = 512  # of one product with the vocabulary


@dataclass
class Vocabulary:
    """The embedding E and the unembedding U of a model, both [V, D]."""

    read: Tensor
    write: Tensor

    @classmethod
    def of(cls, model: Any) -> Vocabulary:
        """Find the embedding and the unembedding of a model."""
        read: Any = embedding_of(model).weight
        write: Any = unembedding_of(model).weight
        return cls(precise(read), precise(write))


def standardized(x: Tensor) -> Tensor:
    """Scale states to a mean square of 1, as norms do, gains apart."""
    return x / x.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()


class OfWeights(Probe):
    """A probe that needs no forward: it reads weights when it is attached."""

    stimulus = "weights"
    low = -1.0

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where, definition=definition)
        self.values: dict[Site, Tensor] = {}

    def begin(self, model: Any, sites: Sites) -> None:
        """Read every self-attention."""
        super().begin(model, sites)
        with torch.no_grad():
            for site, weights in named_sites(model, sites):
                self.values[site] = self.read(model, weights)

    def read(self, model: Any, weights: HeadWeights) -> Tensor:
        """Score the heads of a site [h]."""
        raise NotImplementedError

    def result(self) -> Scores:
        """Return what was read."""
        return self.scores(self.values)


@register("copying", groups=("weights",))
class Copying(OfWeights):
    """Whether a head copies the token that it attends to: 1 copies, -1 writes against it.

    The eigenvalues of a head's map are those of a small matrix, d x d, since x y and y x share
    theirs.
    """

    key, title = "copying", "copies what it looks at"
    definitions: ClassVar = {
        "eigenvalues": "sum of the eigenvalues of W_V W_O over the sum of their sizes "
        "(TransformerLens)",
        "full": "the same of W_E W_V W_O W_U, through the vocabulary (Elhage 2021)",
        "top5": "share of tokens t that are among the 5 largest logits of norm(e_t) W_V W_O W_U "
        "(the check of copying in Wang 2022); 0 to 1",
        "rises": "share of tokens whose own logit is raised over the mean of all "
        "(Olsson 2022's positive copying)",
    }

    def read(self, model: Any, weights: HeadWeights) -> Tensor:
        """Score each head."""
        if self.definition == "eigenvalues":
            inner = torch.einsum("hed,hdf->hef", weights.o, weights.v)
            return balance(inner)
        words = Vocabulary.of(model)
        if self.definition == "full":
            # eig(E V O U^T) without zeros: eig(O U^T E V), [e, e].
            through = words.write.T @ words.read  # [D, D]
            inner = torch.einsum("hed,dc,hcf->hef", weights.o, through, weights.v)
            return balance(inner)
        hits = torch.zeros(weights.heads)
        for tokens, logits in token_maps(words, weights):
            own = logits.gather(2, tokens[None, :, None].expand(weights.heads, -1, 1))
            if self.definition == "top5":
                hits += (place(logits, own) < 5).sum(1)
            else:
                hits += (own[..., 0] > logits.mean(2)).sum(1)
        return hits / len(words.read)


@register("suppression", groups=("weights",))
class Suppression(OfWeights):
    """Whether a head suppresses the token that it attends to: it is among the lowest logits."""

    key, title, low = "suppression", "suppresses what it looks at", 0.0
    definitions: ClassVar = {
        "top5": "share of tokens t among the 5 lowest logits of norm(e_t) W_V W_O W_U (McDougall "
        "2023's copy suppression, by the weights)",
    }

    def read(self, model: Any, weights: HeadWeights) -> Tensor:
        """Score each head."""
        words, hits = Vocabulary.of(model), torch.zeros(weights.heads)
        for tokens, logits in token_maps(words, weights):
            own = logits.gather(2, tokens[None, :, None].expand(weights.heads, -1, 1))
            hits += (place(-logits, -own) < 5).sum(1)
        return hits / len(words.read)


@register("relation")
@method(
    "maps_heads",
    call="from regard.probes.parameters import Relation\n"
    "probe = Relation([(3, 7), (4, 8)], k=10)  # regard.see(model, text, [probe])",
)
class Relation(OfWeights):
    """How much of a relation between tokens a head holds in its weights (MAPS, Elhelo 2024).

    M = norm(E) W_V W_O U^T, one row for each token that is read; the score is the share of pairs
    (s, t) with t among the `k` largest of row s. Heads over 0.15 are said to implement it. `M` is
    never made: only the rows of the pairs.
    """

    key, title, low = "relation", "holds the relation", 0.0
    definitions: ClassVar = {
        "promotes": "share of pairs (s, t) with t in the top k of m_s (Elhelo 2024)",
        "suppresses": "share of pairs with t in the top k of -m_s",
    }

    def __init__(
        self, pairs: Sequence[tuple[int, int]], k: int = 10, where: Any = None, *,
        definition: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(where, definition=definition)
        if not pairs or k < 1:
            fail(
                ValueRangeError, "pairs, k", (len(pairs), k), "some pairs of token ids and k >= 1",
                "Relation([(source, target), ...])",
            )  # fmt: skip
        self.pairs, self.k = torch.tensor(list(pairs)), k

    def read(self, model: Any, weights: HeadWeights) -> Tensor:
        """Look only at the rows of the pairs."""
        words = Vocabulary.of(model)
        bad = self.pairs[(self.pairs < 0) | (self.pairs >= len(words.read))]
        if len(bad):
            fail(
                ValueRangeError, "pairs", f"token {int(bad[0])}", f"ids under {len(words.read)}",
                "take single tokens of this model's tokenizer",
            )  # fmt: skip
        sign = 1.0 if self.definition == "promotes" else -1.0
        hits = torch.zeros(weights.heads)
        for start in range(0, len(self.pairs), TOKENS):
            some = self.pairs[start : start + TOKENS]
            logits = sign * written(words, weights, some[:, 0])  # [h, pairs, V]
            own = logits.gather(2, some[None, :, 1:].expand(weights.heads, -1, 1))
            hits += (place(logits, own) < self.k).sum(1)
        return hits / len(self.pairs)


SEQUENCES = (
    [str(i) for i in range(100)],
    [chr(c) for c in range(ord("a"), ord("z") + 1)],
    [chr(c) for c in range(ord("A"), ord("Z") + 1)],
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    ["January", "February", "March", "April", "May", "June", "July", "August", "September",
     "October", "November", "December"],
    ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"],
)  # fmt: skip


def successors(tokenizer: Any) -> list[tuple[int, int]]:
    """Return pairs (token, the next in its order) of numbers, letters, days, for a successor head.

    Those alone whose words are one token each, with a space before them or without:
    `Relation(successors(tokenizer))` (Gould 2023).
    """
    pairs = []
    for space in ("", " "):
        for order in SEQUENCES:
            ids = [tokenizer(space + x, add_special_tokens=False)["input_ids"] for x in order]
            pairs += [(a[0], b[0]) for a, b in pairwise(ids) if len(a) == len(b) == 1]
    return pairs


def balance(matrices: Tensor) -> Tensor:
    """Return the sum of eigenvalues over the sum of their sizes, in [-1, 1]; matrices [h, e, e]."""
    values = torch.linalg.eigvals(matrices.double())
    return (values.sum(-1).real / values.abs().sum(-1).clamp(min=1e-30)).float()


def place(logits: Tensor, own: Tensor) -> Tensor:
    """Return the rank of `own` among logits: 0 is the largest."""
    found: Tensor = (logits >= own).sum(2) - 1
    return found


def written(words: Vocabulary, weights: HeadWeights, tokens: Tensor) -> Tensor:
    """Return logits [h, tokens, V] that each head adds where it looks at each of some tokens."""
    states = standardized(words.read[tokens])
    said = torch.einsum("td,hde,hef->htf", states, weights.v, weights.o)
    return said @ words.write.T


def token_maps(words: Vocabulary, weights: HeadWeights) -> Iterator[tuple[Tensor, Tensor]]:
    """Return every token, some at a time, with the logits each head writes for it [h, some, V]."""
    step = max(1, (1 << 25) // (weights.heads * len(words.write)))
    for start in range(0, len(words.read), step):
        tokens = torch.arange(start, min(start + step, len(words.read)))
        yield tokens, written(words, weights, tokens)


@dataclass(frozen=True)
class Operation:
    """What a head does to the tokens it does most to."""

    source: int
    size: float
    targets: list[int]


def salient(
    model: nn.Module, site: Site, head: int, count: int = 30, targets: int = 5
) -> list[Operation]:
    """Return the tokens a head acts on most, ||e W_V W_O|| / ||e||, and what it writes for each."""
    words = Vocabulary.of(model)
    weights = head_weights(model, site)
    if not 0 <= head < weights.heads:
        fail(ValueRangeError, "head", head, f"0 to {weights.heads - 1}", "name a head of this site")
    with torch.no_grad():
        moved = words.read @ weights.v[head] @ weights.o[head]
        size = moved.norm(dim=1) / words.read.norm(dim=1).clamp(min=1e-12)
        top = size.topk(min(count, len(size))).indices
        logits = written(words, weights, top)[head]
    best = logits.topk(targets, dim=1).indices
    return [Operation(int(s), float(size[s]), best[i].tolist()) for i, s in enumerate(top)]


@dataclass(frozen=True)
class Composition:
    """How much heads read what heads of earlier layers write: `values` [writers, readers]."""

    kind: str
    heads: list[tuple[Site, int]]
    values: Tensor

    def top(self, count: int = 5) -> list[tuple[tuple[Site, int], tuple[Site, int], float]]:
        """Return the strongest pairs: writer, reader, score."""
        flat = self.values.flatten().argsort(descending=True)[:count].tolist()
        width = len(self.heads)
        return [
            (self.heads[x // width], self.heads[x % width], float(self.values.flatten()[x]))
            for x in flat
        ]


def composition(
    model: nn.Module, kind: str = "K", *, baseline: int = 0, seed: int = 0
) -> Composition:
    """||W_OV(writer) M(reader)|| / (||W_OV|| ||M||), M the reader's Q, K or OV (Elhage 2021).

    `baseline` random pairs of the same sizes are averaged and taken off. Pairs whose writer is
    not in an earlier layer are 0. Only norms are computed: no D x D matrix is made.
    """
    if kind not in ("Q", "K", "V"):
        fail(RuleError, "kind", repr(kind), "'Q', 'K' or 'V'", "name what the reader makes of it")
    every = named_sites(model, hook_of(model)[1])
    heads = [(site, h) for site, w in every for h in range(w.heads)]
    values = torch.zeros(len(heads), len(heads), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    start = 0
    for first, (_, writer) in enumerate(every):
        stop = start + writer.heads
        column = stop
        for _, reader in every[first + 1 :]:
            left, right = _reader(reader, kind)
            score = _composed(writer.v, writer.o, left, right)
            if baseline:
                chance = torch.zeros((), dtype=torch.float64)
                for _ in range(baseline):
                    shapes = [x[:1].shape for x in (writer.v, writer.o, left, right)]
                    noise = [torch.randn(shape, generator=generator) for shape in shapes]
                    chance += _composed(*noise)[0, 0] / baseline
                score = score - chance
            values[start:stop, column : column + reader.heads] = score
            column += reader.heads
        start = stop
    return Composition(kind, heads, values)


def _reader(weights: HeadWeights, kind: str) -> tuple[Tensor, Tensor]:
    """Return what a reader does with a state, as two factors [h, D, d] and [h, d, D]."""
    if kind == "Q":
        return weights.q, weights.k.transpose(1, 2)
    if kind == "K":
        return weights.k, weights.q.transpose(1, 2)
    return weights.v, weights.o


def _composed(v: Tensor, o: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """||V O L R|| / (||V O|| ||L R||) for writers and readers [w, r], by traces of small ones."""
    v, o, left, right = (x.double() for x in (v, o, left, right))
    vv = v.transpose(1, 2) @ v  # [w, e, e]
    rr = right @ right.transpose(1, 2)  # [r, d, d]
    inner = torch.einsum("wed,rdf->wref", o, left)  # [w, r, e, d]
    square = torch.einsum("wab,wrbd,rdc,wrac->wr", vv, inner, rr, inner)

    def size(a: Tensor, b: Tensor) -> Tensor:
        aa, bb = a.transpose(1, 2) @ a, b @ b.transpose(1, 2)
        return (aa * bb).sum((1, 2)).clamp(min=0).sqrt()

    product: Tensor = square.clamp(min=0).sqrt()
    return product / (size(v, o)[:, None] * size(left, right)[None]).clamp(min=1e-30)


def singular(weights: HeadWeights, head: int, of: str = "qk") -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors U [D, d], values [d] and V [D, d] of W_Q W_K^T or W_V W_O, from factors.

    Row s_k (x . u_k)(y . v_k) sums to the score of states x and y (of "qk").
    """
    if of not in ("qk", "ov"):
        fail(RuleError, "of", repr(of), "'qk' or 'ov'", "name the map of the head")
    a = weights.q[head] if of == "qk" else weights.v[head]
    b = weights.k[head] if of == "qk" else weights.o[head].T
    qa, ra = torch.linalg.qr(a.double())
    qb, rb = torch.linalg.qr(b.double())
    u, s, vt = torch.linalg.svd(ra @ rb.T)
    return qa @ u, s, qb @ vt.T
