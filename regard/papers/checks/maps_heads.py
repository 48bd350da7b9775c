"""Heads made to copy and to map are found in their weights, and weights foretell outputs."""

from __future__ import annotations

import torch
from torch import nn

from regard.models.projections import HeadWeights
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.probes.parameters import Relation, Vocabulary, written


class _Words(nn.Module):
    """A vocabulary of orthogonal words."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.eye(count))
        self.head = nn.Linear(count, count, bias=False)
        self.head.weight.data.copy_(torch.eye(count))

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        """Its inverse."""
        return self.head


@check("maps_heads", beyond="relations of large models, and descriptions of their operations")
def relations() -> Claims:
    """Heads made to copy and to map are found in their weights, and weights foretell outputs."""
    count = 64
    model, eye = _Words(count), torch.eye(count)
    around = torch.randperm(count)  # one circle, so that no word is its own image
    turn = torch.empty_like(around).index_copy_(0, around, around.roll(1))
    weights = HeadWeights(*(eye.expand(3, -1, -1),) * 3, torch.stack([eye, eye[turn], -eye]))
    own, mapped = [(i, i) for i in range(count)], [(i, int(turn[i])) for i in range(count)]
    with torch.no_grad():
        copy, other = (Relation(pairs, k=1).read(model, weights) for pairs in (own, mapped))
        against = Relation(own, k=1, definition="suppresses").read(model, weights)
    restart()
    heads = 24
    strength = torch.rand(heads)[:, None, None]
    noisy = 0.25 * strength * eye[turn] + 0.06 * torch.randn(heads, count, count)
    many = HeadWeights(*(eye.expand(heads, -1, -1),) * 3, noisy)
    with torch.no_grad():
        static = Relation(mapped, k=3).read(model, many)
    # At work: each head looks mostly at one token among four, and its output is read in words.
    source, rest = torch.randint(count, (200,)), torch.randint(count, (200, 3))
    words = Vocabulary.of(model)
    others = torch.stack([written(words, many, rest[:, i]) for i in range(3)]).mean(0)
    said = 0.7 * written(words, many, source) + 0.3 * others
    target = turn[source]
    hit = (said.topk(3, dim=-1).indices == target[None, :, None]).any(-1)
    dynamic = hit.double().mean(1)
    together = float(torch.corrcoef(torch.stack([static.double(), dynamic]))[0, 1])
    yield claim("Hand-built model", "copy head on copying", float(copy[0])).equals(1.0, "1")
    yield claim("Hand-built model", "map head on the map", float(other[1])).equals(1.0, "1")
    yield claim("Hand-built model", "map head on copying", float(copy[1])).below(
        0.05, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("Hand-built model", "copy head on the map", float(other[0])).below(
        0.05, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("negating W_O", "suppression, by head", str(against.tolist())).equals(
        "[0.0, 0.0, 1.0]", "the negated copy head alone"
    )
    yield claim("Static scores correlate", "correlation over 24 noisy heads", together).above(
        0.7, "the catalogue's bound", because=CATALOGUE
    )
