"""Columns that are trusted too much grow and are gone back on; others fade."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from regard.controls.attended import attended
from regard.controls.over_trust import decode_without_over_trust, over_trust
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.small_llama import llama

SIGMA, START, BEAMS = 50.0, 4, 3


class _Head(nn.Module):
    num_heads = 1

    def __init__(self, summary: int) -> None:
        super().__init__()
        self.summary = summary

    def forward(self, b: int, n: int) -> Tensor:
        """Every query puts most of its weight on one token, once it is there."""
        k = torch.zeros(b, 1, n, 2)
        k[..., 1] = 1.0
        # because: the token is there once it was decoded
        if n > self.summary:
            k[:, 0, self.summary, 0] = float(torch.tensor(float(n)).log()) + 4.0
        q = torch.tensor([2.0**0.5, 0.0]).expand(b, 1, n, 2)
        return nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)


class _Scripted(nn.Module):
    """Says 1, 2, 3, ... by a rule of its own, with one column of attention that draws all."""

    def __init__(self, summary: int) -> None:
        super().__init__()
        self.head = _Head(summary)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        from types import SimpleNamespace

        b, n = input_ids.shape
        self.head(b, n)
        scores = torch.zeros(b, n, 20)
        scores[..., torch.arange(n), (torch.arange(n) * 3 + 1) % 20] = 5.0
        scores[..., torch.arange(n), (torch.arange(n) * 3 + 2) % 20] = 4.0
        return SimpleNamespace(logits=scores)


@check(
    "opera",
    beyond="LLaVA-1.5 and InstructBLIP, POPE and CHAIR",
)
@torch.no_grad()
def opera() -> Claims:
    """Columns that are trusted too much grow and are gone back on; others fade."""
    model, ids = llama(2), torch.randint(3, 60, (1, 8))
    # A Module types its parts as Tensor or Module.
    greedy = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)  # type: ignore
    plain = decode_without_over_trust(model, ids, tokens=8, strength=0.0, patience=10**6)
    searched = model.generate(  # type: ignore[operator]
        ids, max_new_tokens=8, num_beams=BEAMS, do_sample=False, eos_token_id=None
    )
    several = decode_without_over_trust(
        model, ids, tokens=8, beams=BEAMS, strength=0.0, patience=10**6
    )
    faint = torch.zeros(14, 14)
    faint[:, 0] = torch.rand(14) / SIGMA
    # By the equation: products of sigma w down each column, and the largest of them.
    small = (torch.rand(6, 6).double() / SIGMA).tril() + 1e-3 * torch.eye(6)
    products = [1e-7 * float((SIGMA * small[j:, j]).prod()) for j in range(6)]
    product = over_trust(small, SIGMA)[0] / max(products)
    fades = [over_trust(faint[:n, :n], SIGMA)[0] for n in (2, 14)]
    summary = START + int(torch.randint(1, 4, ()))
    # Most of the weight of every later token is on the summary.
    toy = _Scripted(summary)
    window = torch.zeros(12, 12)
    for i in range(12):
        seen = attended(toy, {"input_ids": torch.zeros(1, START + i + 1, dtype=torch.long)})
        window[i, : i + 1] = next(iter(seen.found.values()))[0, 0, START:]
    column = summary - START
    scores = [over_trust(window[:n, :n], SIGMA) for n in range(column + 2, 13)]
    falls = sum(b <= a for (a, _), (b, _) in pairwise(scores))
    found = decode_without_over_trust(
        toy, torch.zeros(1, START, dtype=torch.long), tokens=16, patience=3, early=1, strength=0.0
    )
    place, token = found.back[0] if found.back else (-1, -1)
    later = found.ids[0, START:].tolist()
    again = place < len(later) and later[place] == token
    yield claim("alpha=0 and r=infinity", "tokens", str(plain.ids.tolist())).equals(
        str(greedy.tolist()), "those of greedy search"
    )
    yield claim(
        "alpha=0 and r=infinity", "tokens of three beams", str(several.ids.tolist())
    ).equals(str(searched.tolist()), "those of beam search in transformers")
    yield claim("on a scripted toy model", "lengths at which the score fell", falls).equals(
        0, "none"
    )
    yield claim("on a scripted toy model", "column found", str({x for _, x in scores})).equals(
        str({column}), "the planted one"
    )
    yield claim("on a scripted toy model", "place gone back to", place).equals(
        summary - START + 1, "right behind the column"
    )
    yield claim("on a scripted toy model", "whether what was banned is there", again).equals(
        False, "never there again"
    )
    yield claim(
        "columns with weights", "score of a window, in its largest product", product
    ).within(1e-9, "1", value=1, because=FLOAT64)
    yield claim("columns with weights", "score of 14 rows", fades[1]).below(
        fades[0], "of 2 rows", times=0.01, because="a product of numbers that average a half"
    )
