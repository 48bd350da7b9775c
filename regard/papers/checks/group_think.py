"""Threads step by step are one forward with mask and places; words reach others a step on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.attending import dense_mask
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.serving.threads import think_together


@check("group_think", beyond="models trained to share work: the rule is given, as asked")
@torch.no_grad()
def group_think() -> Claims:
    """Threads step by step are one forward with mask and places; words reach others a step on."""
    model: Any = llama()
    prompt, budget, count_ = torch.randint(3, 64, (9,)).tolist(), 12, 3
    headers = [[10 + n, 20 + n] for n in range(count_)]

    def scores_of(changed: tuple[int, int] | None = None) -> tuple[Tensor, list[list[int]]]:
        heard = []

        def choose(scores: Tensor, said: list[list[int]]) -> list[int]:
            heard.append(scores.clone())
            best = scores.argmax(-1).tolist()
            if changed is not None and len(said[0]) == changed[1]:
                best[changed[0]] = (best[changed[0]] + 1) % 64
            return list(best)

        threads = think_together(model, prompt, headers, budget=budget, choose=choose)
        list(threads)
        return torch.stack(heard), threads.ids  # scores before token k of each thread

    heard, ids = scores_of()
    # One forward over the tokens in the order of time.
    order = [(k, n) for k in range(budget - 1) for n in range(count_)]
    p, whole = len(prompt), [*prompt, *(ids[n][k] for k, n in order)]
    met = torch.zeros(len(whole), len(whole), dtype=torch.bool)
    met[:, :p] = True
    met[:p, :p] = torch.ones(p, p, dtype=torch.bool).tril()
    for i, (k, n) in enumerate(order):
        for j, (then, m) in enumerate(order):
            met[p + i, p + j] = then < k or (then, m) == (k, n)
    places = [*range(p), *(p + n * budget + k for k, n in order)]
    logits = model(
        torch.tensor([whole]), attention_mask=dense_mask(met), position_ids=torch.tensor([places])
    ).logits[0, p:]
    one = max(gap(logits[i], heard[k + 1, n]) for i, (k, n) in enumerate(order))

    other, _ = scores_of(changed=(1, 5))
    # What stands before token 6 is the logits of step 5, which only the thread itself can feel.
    before = max(gap(other[:6], heard[:6]), gap(other[6, [0, 2]], heard[6, [0, 2]]))
    after = min(gap(other[7, n], heard[7, n]) for n in range(count_))

    alone = think_together(model, prompt, [[]], budget=budget)
    list(alone)
    plain = model.generate(
        torch.tensor([prompt]), max_new_tokens=budget, do_sample=False, eos_token_id=None
    )[0, p:].tolist()

    def steps(n: int) -> int:  # name 24 things; thread i takes the i-th that nobody has named
        def choose(scores: Tensor, said: list[list[int]]) -> list[int]:
            left = sorted(set(range(30, 54)) - {t for own in said for t in own})
            return [left[min(i, len(left) - 1)] if left else 2 for i in range(n)]

        threads = think_together(model, prompt, [[3]] * n, budget=40, choose=choose, stop=2)
        return len(list(threads)) - 2  # without header and end

    taken = [steps(n) for n in (1, 2, 4)]
    yield claim("Decoded step-by-step", "largest difference of three threads", one).within(
        1e-4, "one forward with explicit mask and places", because=CATALOGUE
    )
    yield claim("N=1 equals ordinary", "same tokens", alone.ids[0] == plain).equals(
        True, "generate"
    )
    yield claim("Changing thread m's", "change of other threads up to that step", before).equals(
        0.0, "none"
    )
    yield claim("Changing thread m's", "least change of a thread after it", after).above(
        0, "none", plus=1e-4, because="over the rounding of the forward above"
    )
    for n, many in zip((1, 2, 4), taken, strict=True):
        yield claim("Enumeration toy", f"steps of {n} threads", many).equals(
            24 // n, "1/N of the steps"
        )
