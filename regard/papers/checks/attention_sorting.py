"""What is looked at most comes last, and stays there; no round is ordinary decoding."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from regard.controls.document_ranking import assemble, sort_documents
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.number_words import NumberWords
from regard.papers.shared.small_llama import llama

RELEVANT, PLAIN, ASK = 7, 8, 9


class _Stub(nn.Module):
    """One head: a prior that falls with distance, times a gain of 3 where a token is relevant.

    `reach` tokens away the prior has fallen to 1 / e.
    """

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.head = _PriorHead(self)

    def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Tensor:
        out: Tensor = self.head(input_ids)
        return out


class _PriorHead(nn.Module):
    num_heads = 1

    def __init__(self, stub: _Stub) -> None:
        super().__init__()
        self.reach = stub.reach

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        place = torch.arange(n, dtype=torch.float32) / self.reach
        gain = torch.where(ids[0] == RELEVANT, torch.tensor(3.0).log(), 0.0)
        # Scores are place_j + gain_j: the distance to the last query, but for a constant.
        k = torch.stack((place, gain), -1)[None, None]
        q = torch.ones(1, 1, n, 2) * 2**0.5
        return nn.functional.scaled_dot_product_attention(q, k, k)


@check(
    "attention_sorting",
    beyond="SynthWiki at 30k tokens and its accuracy",
)
def sorting() -> Claims:
    """What is looked at most comes last, and stays there; no round is ordinary decoding."""
    # The distance is counted in documents: by the token, exp(-distance) would leave nothing of a
    # gain of 3 after two tokens. A document overtakes one a round, since 3 is more than e.
    length, tokenizer = int(torch.randint(2, 4, ())), NumberWords()
    stub = _Stub(reach=length + 1.0)
    documents = [f"{' '.join([str(PLAIN)] * length)} {10 + i}" for i in range(4)]
    documents[int(torch.randint(0, 4, ()))] = " ".join([str(RELEVANT)] * (length + 1))
    relevant = next(x for x in documents if x.startswith(str(RELEVANT)))
    late, moved, tried = 0, 0, 0
    for order in permutations(documents):
        found = sort_documents(
            stub, list(order), str(ASK), tokenizer=tokenizer, rounds=3, separator=""
        )
        again = sort_documents(
            stub, list(found.documents), str(ASK), tokenizer=tokenizer, rounds=1, separator=""
        )
        late += found.documents[-1] != relevant
        moved += again.documents[-1] != relevant
        tried += 1
    # One round by the equation: exp(-distance), times 3 where a token is relevant, over the sum.
    once = sort_documents(stub, documents, str(ASK), tokenizer=tokenizer, rounds=1, separator="")
    asked = assemble(tokenizer, documents, str(ASK), separator="")
    ids = asked.ids[0]
    prior = torch.exp((torch.arange(len(ids)) - len(ids)) / (length + 1.0))
    odds = torch.where(ids == RELEVANT, 3 * prior, prior)
    mass = torch.stack([odds[span].sum() for span in asked.documents]) / odds.sum()
    model = llama(2)
    texts = [" ".join(map(str, torch.randint(3, 60, (6,)).tolist())) for _ in range(3)]
    none = sort_documents(model, texts, "5 9", tokenizer=tokenizer, rounds=0, separator="")
    plain, same = (
        model.generate(  # type: ignore[operator]  # a Module types its parts as Tensor or Module
            assemble(tokenizer, x, "5 9", separator="").ids,
            max_new_tokens=8,
            do_sample=False,
        ).tolist()
        for x in (texts, none.documents)
    )
    one = sort_documents(model, texts, "5 9", tokenizer=tokenizer, rounds=1, separator="")
    yield claim(
        "With a toy attention stub", f"of {tried} orders, not last in 3 rounds", late
    ).equals(0, "none")
    yield claim("With a toy attention stub", "orders that a further round undoes", moved).equals(
        0, "none"
    )
    yield claim(
        "With a toy attention stub", "difference of scores", gap(torch.tensor(once.scores), mass)
    ).within(1e-6, "shares of exp(-distance) times the gain", because=FLOAT32)
    yield claim("generated text with T=0", "generated tokens", str(same)).equals(
        str(plain), "those of ordinary decoding"
    )
    yield claim("scores sum to under 1", "sum of scores", sum(one.scores)).below(
        1, "all weight of a row", because="documents are not all that is there"
    )
