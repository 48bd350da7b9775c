"""Nothing is added where nothing is used or all is sure; a copy head is found, and answers gain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.controls.context_guided import guided, ratios, train_use_detector
from regard.papers.checks import Claims, check
from regard.papers.claims import claim

HEADS, COPY, WORDS, CONTEXT = 12, 5, 50, 8


def _row(ids: Tensor, used: int) -> Tensor:
    """Weights [heads, context] of one query: noise, and one head on the token that is used."""
    row = torch.rand(HEADS, CONTEXT) ** 2
    row[COPY] = 0.1 * torch.rand(CONTEXT)
    row[COPY, used] += 1.0
    return row / row.sum(1, keepdim=True)


def _examples(many: int) -> tuple[Tensor, Tensor]:
    features, labels = [], []
    for _ in range(many):
        ids = torch.randperm(WORDS)[:CONTEXT]
        used = int(torch.randint(0, CONTEXT, ()))
        unique, share = ratios(_row(ids, used), ids)
        mine = int((unique == ids[used]).nonzero())
        other = (mine + 1 + int(torch.randint(0, CONTEXT - 1, ()))) % CONTEXT
        features += [share[:, mine], share[:, other]]
        labels += [True, False]
    return torch.stack(features), torch.tensor(labels)


@check(
    "dagcd",
    narrowed={
        "on swapped-entity toy QA": "scores and rows of weights are drawn, one token each",
        "alpha=0 or empty mask": "of one distribution each",
    },
    beyond="open-book question answering of 7B models",
)
def dagcd() -> Claims:
    """Nothing is added where nothing is used or all is sure; a copy head is found, answers gain."""
    scores = torch.randn(WORDS)
    tokens = torch.randperm(WORDS)[:CONTEXT]
    plain = scores.softmax(-1)
    none = guided(scores, torch.zeros(CONTEXT), tokens, 2.0)
    still = guided(scores, torch.rand(CONTEXT), tokens, 0.0)
    sure = nn.functional.one_hot(torch.tensor(int(torch.randint(0, WORDS, ()))), WORDS) * 1e4
    left = guided(sure.float(), torch.rand(CONTEXT), tokens, 2.0)
    features, labels = _examples(150)
    found = train_use_detector(features, labels, [(0, h) for h in range(HEADS)], many=4)
    # What the model remembers scores a little more than what the context says in its place.
    greedy, ours, tried = 0, 0, 200
    weights = torch.tensor(found.weights)
    kept = [head for _, head in found.heads]
    for _ in range(tried):
        ids = torch.randperm(WORDS)[:CONTEXT]
        answer = int(torch.randint(0, CONTEXT, ()))
        remembered = int(next(x for x in torch.randperm(WORDS) if x not in ids))
        scores = 0.5 * torch.randn(WORDS)
        scores[remembered] += 3.0
        scores[ids[answer]] += 2.5
        unique, share = ratios(_row(ids, answer), ids)
        said = share[kept].T @ weights
        used = torch.where(said + found.bias > 0, said, 0.0)
        greedy += int(scores.argmax()) == int(ids[answer])
        ours += int(guided(scores, used.clamp(min=0), unique, 2.0).argmax()) == int(ids[answer])
    for name, p in (("an empty mask", none), ("alpha = 0", still)):
        yield claim("alpha=0 or empty mask", f"the token of {name}", int(p.argmax())).equals(
            int(plain.argmax()), "that of greedy decoding"
        )
    yield claim(
        "H=0 for one-hot P",
        "whether P is as it was",
        bool(torch.equal(left, sure.float().softmax(-1))),
    ).equals(True, "the same")
    yield claim("Planted copy head", "head of the largest weight", found.heads[0][1]).equals(
        COPY, "the planted one"
    )
    yield claim("on swapped-entity toy QA", f"of {tried}, answers of the context", ours).above(
        greedy, "those of greedy decoding"
    )
