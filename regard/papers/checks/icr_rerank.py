"""A blank query ranks nothing, rows of a query are those of the map, a copy is ranked first."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch

from regard.controls.attended import attended
from regard.controls.document_ranking import rerank
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.copier_models import copier
from regard.papers.shared.measure import gap
from regard.papers.shared.number_words import NumberWords
from regard.papers.shared.small_llama import llama
from regard.probes.wordpieces import whole_maps


class _Induction(torch.nn.Module):
    """The trained copier, called as a model of transformers is."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        said: torch.Tensor = self.model(input_ids)
        return said


def _said(ids: list[int]) -> str:
    return " ".join(map(str, ids))


@check(
    "icr_rerank",
    beyond="retrieval sets and RankGPT, and latency",
)
def icr() -> Claims:
    """A blank query ranks nothing, rows of a query are those of the map, a copy is ranked first."""
    model, tokenizer = llama(2), NumberWords()
    draw = [torch.randint(3, 60, (8,)).tolist() for _ in range(3)]
    texts = [_said(one) for one in draw]
    same = rerank(
        model, "5 9 11", texts, tokenizer=tokenizer, calibrate="5 9 11", lead="", separator=""
    )
    ids = torch.randint(3, 60, (1, 30))
    rows = slice(24, 30)
    seen = attended(model, {"input_ids": ids}, rows).summed()
    maps = whole_maps(model, input_ids=ids)
    full = torch.stack([x[:, :, rows].mean(2).sum(1) for x in maps.values()]).sum(0)
    copies = _Induction(copier(2)[0])
    first, tried = 0, 0
    drawn = torch.randperm(40)[: 3 * 6].view(3, 6).tolist()
    blank = _said(torch.randint(0, 40, (4,)).tolist())
    for order in permutations(range(3)):
        documents = [_said(drawn[i]) for i in order]
        found = rerank(
            copies,
            _said(drawn[0][1:5]),
            documents,
            tokenizer=tokenizer,
            calibrate=blank,
            lead="",
            separator="",
        )
        first += found.best == _said(drawn[0])
        tried += 1
    yield claim("Query equal to the calibration", "scores", str(set(same.scores))).equals(
        "{0.0}", "0 for every document"
    )
    yield claim("Row-only computation", "difference of scores", gap(seen, full)).within(
        1e-5, "those of full maps", because=CATALOGUE
    )
    yield claim("In a toy induction model", "orders with the right one first", first).equals(
        tried, "all orders"
    )
