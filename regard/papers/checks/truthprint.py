"""A perfect detector leads back to the right branch; a threshold of one is greedy decoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from regard.controls.hallucination import decode_truthfully
from regard.controls.steps_back import decode_with_steps_back
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama

FORK, WRONG, RIGHT, BAD = 3, 4, 5, 6


class _Cache:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def crop(self, most: int) -> None:
        del self.seen[most:]


class _Generator(nn.Module):
    """Says 3 at a random place, then 4 a little more surely than 5; after 4 comes 6, bad."""

    def __init__(self, fork: int) -> None:
        super().__init__()
        self.fork = fork

    def forward(
        self, ids: Tensor, past_key_values: _Cache | None = None, use_cache: bool = True
    ) -> Any:
        cache = past_key_values or _Cache()
        cache.seen += ids[0].tolist()
        scores = torch.zeros(1, 1, 12)
        last, n = cache.seen[-1], len(cache.seen)
        if last == FORK:
            scores[..., WRONG], scores[..., RIGHT] = 2.0, 1.8
        elif last == WRONG:
            scores[..., BAD] = 9.0
        else:
            scores[..., FORK if n == self.fork else 8] = 9.0
        return SimpleNamespace(logits=scores, past_key_values=cache)


@check(
    "truthprint",
    beyond="hidden states of vision-language models, and detectors carried across models",
)
@torch.no_grad()
def truthprint() -> Claims:
    """A perfect detector leads back to the right branch; a threshold of one is greedy decoding."""
    toy = _Generator(int(torch.randint(2, 6, ())))
    start = torch.tensor([[8]])

    def oracle(decoded: Any) -> float:
        return float(decoded[-1] == BAD)

    found = decode_truthfully(toy, start, oracle, tokens=9, threshold=0.5, most=5)
    greedy = decode_with_steps_back(toy, start, tokens=9, go_back=lambda d, p: None)
    never = decode_truthfully(toy, start, oracle, tokens=9, threshold=1.0)
    model = llama(2)
    ids = torch.randint(3, 60, (1, 8))
    states: list[tuple[Tensor, Tensor]] = []

    def note(whole: Tensor, scores: Tensor) -> Tensor:
        states.append((whole.clone(), scores.clone()))
        return scores

    calls = iter([None, None, None, 1, None, None, 2, None])
    decode_with_steps_back(
        model, ids, tokens=6, choose=note, go_back=lambda d, p: next(calls, None)
    )
    apart = max(gap(model(whole).logits[:, -1], scores) for whole, scores in states)
    said = found.ids[0].tolist()
    right = RIGHT in said and BAD not in said
    yield claim("With a perfect oracle detector", "whether it says the right one", right).equals(
        True, "the right one, and none bad"
    )
    yield claim("With a perfect oracle detector", "steps back", len(found.back)).at_most(
        5, "N retries", because="N is about 5 in the paper"
    )
    yield claim("tau=1 reproduces", "tokens", str(never.ids.tolist())).equals(
        str(greedy.ids.tolist()), "those of greedy decoding"
    )
    yield claim("KV rollback then continue", "difference of logits", apart).within(
        1e-5, "a fresh run on the same prefix", because=CATALOGUE
    )
