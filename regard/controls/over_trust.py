"""OPERA: penalize over-trust, a column of attention that grows on one token while decoding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from regard.controls.attended import AttendedKeys
from regard.controls.site_choice import of_other_encoders
from regard.controls.steps_back import Decoded
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.models.attach import attach, hook_of

SCALE = 1e-7


def over_trust(window: Tensor, sigma: float = 50.0) -> tuple[float, int]:
    """Return the largest column score of a window [rows, rows], and its column.

    Rows are the weights of decoded tokens on each other, lower triangular. The score of column j
    is the product of `sigma` w_ij over rows i from j on: it grows while each of them puts more than
    1 / sigma on j, and vanishes otherwise.

    >>> over_trust(torch.tensor([[0.5, 0.0], [0.5, 0.001]]))[1]
    0
    """
    n = window.shape[0]
    if window.dim() != 2 or window.shape[1] != n or not n:
        fail(ValueRangeError, "window", shape_of(window), "[rows, rows]", "pass a square window")
    below = torch.ones(n, n, dtype=torch.bool).tril()
    logs = torch.where(below, (sigma * window.double()).clamp(min=1e-300).log(), 0.0).sum(0)
    place = int(logs.argmax())
    return SCALE * float(logs[place].clamp(max=60).exp()), place


@method(
    "opera",
    call="from regard.controls.over_trust import decode_without_over_trust\n"
    "decode_without_over_trust(model, ids, tokens=32).ids",
)
@torch.no_grad()
def decode_without_over_trust(
    model: Any, ids: Tensor, *, tokens: int, candidates: int = 5, strength: float = 1.0,
    sigma: float = 50.0, patience: int = 15, early: int = 10, images: Tensor | None = None,
    end: int | None = None, **given: Tensor,
) -> Decoded:  # fmt: skip
    """Decode with a penalty on over-trust, and roll back to just after a column that persists.

    Each of the best `candidates` is run one step; its logit loses `strength` times the column score
    of the last layer (the maximum over heads, with rows normalized). For the first `early` tokens
    it gains the weight on `images` (bool [n]) instead, if there are any. Where one column recurs
    more than `patience` times, decoding resumes just after it, with the token chosen there banned:
    at most `candidates` times per column, and never within the first `early` tokens. One candidate
    is followed (a beam of one); a strength of 0 without rollback is greedy decoding. `given` are
    other inputs of the model, for one row: `pixel_values`, for example.
    (OPERA, Huang et al. 2024)
    """
    if ids.dim() != 2 or ids.shape[0] != 1:
        fail(ValueRangeError, "ids", shape_of(ids), "ids [1, n]", "decode one row at a time")
    if candidates < 1:
        fail(ValueRangeError, "candidates", candidates, "at least 1", "pass candidates=5")
    start = ids.shape[1]
    sites = hook_of(model)[1]
    elsewhere = of_other_encoders(model, sites)
    last = max((x for x in sites if x.module not in elsewhere), key=lambda x: x.layer or 0)
    decoded: list[int] = []
    rows: list[Tensor] = []  # weights of each decoded token on the decoded tokens up to itself
    places: list[int] = []
    banned: dict[tuple[int, ...], set[int]] = {}
    gone: Counter[int] = Counter()
    each = {name: x.expand(candidates, *x.shape[1:]) for name, x in given.items()}
    made, scores = Decoded(ids), model(ids, **given).logits[0, -1].float()
    made.forwards = 1
    while len(decoded) < tokens:
        for token in banned.get(tuple(decoded), ()):
            scores[token] = -torch.inf
        top = scores.topk(candidates).indices
        head = torch.tensor([decoded], dtype=ids.dtype)
        whole = torch.cat((ids, head), 1).expand(candidates, -1)
        seen = AttendedKeys(slice(-1, None), {"names": last.module})
        with attach(model, seen, check=False):
            out = model(torch.cat((whole, top[:, None].to(ids)), 1), **each).logits[:, -1].float()
        made.forwards += 1
        row = next(iter(seen.found.values())).amax(1)  # [candidates, m]
        row = row / row.sum(-1, keepdim=True)
        fines, columns = [], []
        for one in range(candidates):
            window = torch.zeros(len(rows) + 1, len(rows) + 1)
            for i, old in enumerate([*rows, row[one, start:]]):
                window[i, : i + 1] = old[: i + 1]
            fine, column = over_trust(window, sigma)
            if len(decoded) < early and images is not None:
                fine = -float(row[one, : len(images)][images].sum())
            fines.append(fine)
            columns.append(column)
        best = int((scores[top] - strength * torch.tensor(fines)).argmax())
        decoded.append(int(top[best]))
        rows.append(row[best, start:])
        places.append(columns[best])
        place, times = Counter(places).most_common(1)[0]
        back = place + 1
        tried = gone[place] < candidates and place >= early
        if times > patience and tried and back < len(decoded):
            gone[place] += 1
            made.back.append((back, decoded[back]))
            banned.setdefault(tuple(decoded[:back]), set()).add(decoded[back])
            del decoded[back:], rows[back:], places[back:]
            head = torch.tensor([decoded], dtype=ids.dtype)
            scores = model(torch.cat((ids, head), 1), **given).logits[0, -1].float()
            made.forwards += 1
            continue
        scores = out[best]
        if decoded[-1] == end:
            break
    made.ids = torch.cat((ids, torch.tensor([decoded], dtype=ids.dtype)), 1)
    return made
