"""OPERA: penalize over-trust, a column of attention that grows on one token while decoding."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

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


class _Beam(NamedTuple):
    """One line of decoding: its tokens, their rows of weights, and the logits of what follows."""

    decoded: tuple[int, ...]
    rows: tuple[Tensor, ...]  # of each decoded token, on the decoded tokens up to itself
    places: tuple[int, ...]  # the largest column after each
    score: float
    logits: Tensor


@method(
    "opera",
    call="from regard.controls.over_trust import decode_without_over_trust\n"
    "decode_without_over_trust(model, ids, tokens=32).ids",
)
@torch.no_grad()
def decode_without_over_trust(
    model: Any, ids: Tensor, *, tokens: int, beams: int = 1, candidates: int = 5,
    strength: float = 1.0, sigma: float = 50.0, patience: int = 15, early: int = 10,
    images: Tensor | None = None, end: int | None = None, **given: Tensor,
) -> Decoded:  # fmt: skip
    """Decode with a penalty on over-trust, and roll back to just after a column that persists.

    Each of the best `candidates` of each beam is run one step; its log-probability loses `strength`
    times the column score of the last layer (a maximum over heads, rows sum to one). For the first
    `early` tokens it gains the weight on `images` (bool [n]) instead, if there are any. The best
    `beams` by their sums are followed: without penalty and rollback this is beam search, and with
    one beam greedy decoding. Where one column of the best beam recurs more than `patience` times,
    decoding resumes just after it with the beams of that moment, and the token chosen there banned:
    at most `candidates` times per column, and never within the first `early` tokens. `given` are
    other inputs of the model, for one row: `pixel_values`, for example.
    (OPERA, Huang et al. 2024)
    """
    if ids.dim() != 2 or ids.shape[0] != 1:
        fail(ValueRangeError, "ids", shape_of(ids), "ids [1, n]", "decode one row at a time")
    for name, number in (("candidates", candidates), ("beams", beams)):
        if number < 1:
            fail(ValueRangeError, name, number, "at least 1", f"pass {name}=5")
    start = ids.shape[1]
    sites = hook_of(model)[1]
    elsewhere = of_other_encoders(model, sites)
    last = max((x for x in sites if x.module not in elsewhere), key=lambda x: x.layer or 0)
    banned: dict[tuple[int, ...], set[int]] = {}
    gone: Counter[int] = Counter()
    made = Decoded(ids, forwards=1)
    live = [_Beam((), (), (), 0.0, model(ids, **given).logits[0, -1].float())]
    history, ended = [live], list[_Beam]()  # beams of each length, to go back to
    while live and len(live[0].decoded) < tokens:
        scores = torch.stack([x.logits for x in live])
        for line, beam in zip(scores, live, strict=True):
            line[list(banned.get(beam.decoded, ()))] = -torch.inf
        top = scores.topk(candidates).indices
        heads = torch.tensor([x.decoded for x in live], dtype=ids.dtype)
        whole = torch.cat((ids.expand(len(live), -1), heads), 1).repeat_interleave(candidates, 0)
        seen = AttendedKeys(slice(-1, None), {"names": last.module})
        each = {name: x.expand(len(whole), *x.shape[1:]) for name, x in given.items()}
        with attach(model, seen, check=False):
            out = model(torch.cat((whole, top.view(-1, 1).to(ids)), 1), **each).logits[:, -1]
        made.forwards += 1
        row = next(iter(seen.found.values())).amax(1)  # [beams candidates, m]
        row = row / row.sum(-1, keepdim=True)
        grown = []
        for one, token in enumerate(top.flatten().tolist()):
            beam, logs = live[one // candidates], scores[one // candidates].log_softmax(-1)
            rows = (*beam.rows, row[one, start:])
            window = torch.zeros(len(rows), len(rows))
            for i, old in enumerate(rows):
                window[i, : i + 1] = old[: i + 1]
            fine, column = over_trust(window, sigma)
            if len(beam.decoded) < early and images is not None:
                fine = -float(row[one, : len(images)][images].sum())
            score = beam.score + float(logs[token]) - strength * fine
            grown.append(
                _Beam((*beam.decoded, token), rows, (*beam.places, column), score, out[one].float())
            )
        best = sorted(grown, key=lambda x: -x.score)[:beams]
        place, times = Counter(best[0].places).most_common(1)[0]
        back, decoded = place + 1, best[0].decoded
        tried = gone[place] < candidates and place >= early
        if times > patience and tried and back < len(decoded):
            gone[place] += 1
            made.back.append((back, decoded[back]))
            banned.setdefault(decoded[:back], set()).add(decoded[back])
            del history[back + 1 :]
            live, ended = history[back], [x for x in ended if len(x.decoded) <= back]
            continue
        ended += [x for x in best if x.decoded[-1] == end]
        live = [x for x in best if x.decoded[-1] != end]
        history.append(live)
        if ended and (not live or max(x.score for x in ended) >= live[0].score):
            break
    chosen = max((*live, *ended), key=lambda x: x.score)
    made.ids = torch.cat((ids, torch.tensor([chosen.decoded], dtype=ids.dtype)), 1)
    return made
