"""Whether maps explain: what erasing by them does, and how far rankings agree.

Rank agreement is no test of truth (the two papers claimed here conclude so): methods that are all
right may disagree in the tail of unimportant tokens, and methods that agree may all be wrong.
Erasing tokens asks the model instead. Every number is shown beside that of chance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.circuits.explaining import EXPLAINERS, Explainer, Question, occlusion
from regard.core.call import Call
from regard.core.errors import ShapeError, ValueRangeError, fail, need, shape_of
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.probes.scores import head_name
from regard.run.rows import rows_of

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def kendall(a: Tensor, b: Tensor) -> float:
    """Return Kendall's tau-b of two rankings [n], ties counted; NaN where one ranks nothing.

    (pairs in the same order - pairs in the opposite one) / sqrt(pairs untied in a * untied in b).

    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> kendall(x, x), kendall(x, -x), kendall(x, torch.ones(3))
    (1.0, -1.0, nan)
    """
    if a.shape != b.shape or a.dim() != 1:
        fail(
            ShapeError, "b", shape_of(b), f"{shape_of(a)}, as a, of one axis",
            "give two scores for the same tokens",
        )  # fmt: skip
    first, second = (torch.sign(x[:, None].double() - x[None].double()) for x in (a, b))
    untied = float(first.abs().sum()) * float(second.abs().sum())
    return float((first * second).sum()) / math.sqrt(untied) if untied else math.nan


def top_overlap(a: Tensor, b: Tensor, k: int) -> float:
    """Return the share of the k best of a that are among the k best of b.

    >>> top_overlap(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 2.0]), 2)
    0.5
    """
    best = [set(x.topk(min(k, len(x))).indices.tolist()) for x in (a, b)]
    return len(best[0] & best[1]) / max(len(best[0]), 1)


@dataclass(frozen=True)
class Agreement:
    """Mean agreement of each pair of explainers over many inputs.

    `tau` holds the mean, its 95% bootstrap interval and the inputs that could be ranked;
    `overlap` the share of top tokens that are common. `warning` is said with every table.
    """

    names: tuple[str, ...]
    tau: Mapping[tuple[str, str], tuple[float, float, float, int]]
    overlap: Mapping[tuple[str, str], float]
    k: int
    warning: str = "agreement of rankings is no evidence that either is right"

    def mean(self, a: str, b: str) -> float:
        """Return the mean tau of two explainers, in either order."""
        return self.tau[(a, b) if (a, b) in self.tau else (b, a)][0]

    def to_frame(self) -> Any:
        """Return a pandas table, one row for each pair."""
        pandas = need("pandas", "see", "makes tables of scores")
        return pandas.DataFrame(
            [
                {"a": a, "b": b, "tau": mean, "low": low, "high": high, "inputs": count,
                 f"top {self.k}": self.overlap[a, b]}
                for (a, b), (mean, low, high, count) in self.tau.items()
            ]
        )  # fmt: skip


@method(
    "attention_explanation_agreement",
    call="from regard.circuits.faithfulness import agreement\n"
    "from regard.circuits.explaining import EXPLAINERS, Question, question_of\n"
    "# table = agreement([question_of(model, ids, target=7)], EXPLAINERS).to_frame()",
)
def agreement(
    questions: Sequence[Question],
    explainers: Mapping[str, Explainer] = EXPLAINERS,
    *,
    maps: Mapping[str, Sequence[Tensor]] | None = None,
    k: int = 3,
    signed: bool = False,
    keep: Sequence[Tensor] | None = None,
) -> Agreement:
    """Compare explainers by Kendall's tau over the tokens of each question.

    `maps` adds scores that are known already (attention rows, rollout), one [n] for each question.
    Sizes are compared unless `signed`. `keep` bool [n] leaves special tokens out.

    >>> question = Question(lambda x: x.sum((1, 2)), torch.randn(6, 4))
    >>> some = {name: EXPLAINERS[name] for name in ("occlusion", "integrated_gradients")}
    >>> round(agreement([question], some, signed=True).mean(*some), 3)
    1.0
    """
    found: dict[str, list[Tensor]] = {
        name: [explain(q).detach().cpu() for q in questions] for name, explain in explainers.items()
    }
    for name, known in (maps or {}).items():
        if len(known) != len(questions):
            fail(
                ShapeError, f"maps[{name!r}]", f"{len(known)} maps", f"{len(questions)}, as asked",
                "give a map for each question",
            )  # fmt: skip
        found[name] = [x.detach().cpu() for x in known]
    if not signed:
        found = {name: [x.abs() for x in each] for name, each in found.items()}
    if keep is not None:
        found = {n: [x[y] for x, y in zip(e, keep, strict=True)] for n, e in found.items()}
    tau, overlap = {}, {}
    for a, b in itertools.combinations(found, 2):
        pairs = list(zip(found[a], found[b], strict=True))
        tau[a, b] = _summary([kendall(x, y) for x, y in pairs])
        overlap[a, b] = sum(top_overlap(x, y, k) for x, y in pairs) / max(len(pairs), 1)
    return Agreement(tuple(found), tau, overlap, k)


def _summary(found: Sequence[float]) -> tuple[float, float, float, int]:
    """Return mean, 95% bootstrap interval and count of what could be ranked."""
    x = torch.tensor([t for t in found if t == t], dtype=torch.float64)
    if not len(x):
        return math.nan, math.nan, math.nan, 0
    draw = torch.Generator().manual_seed(0)
    means = x[torch.randint(len(x), (500, len(x)), generator=draw)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(x.mean()), low, high, len(x)


@dataclass(frozen=True)
class Verdict:
    """How faithful a map is: higher comprehensiveness and lower sufficiency are better.

    `by_chance` are the same two numbers for random rankings, and `beaten` the share of random
    rankings whose comprehensiveness the map exceeds.
    """

    name: str
    comprehensiveness: float
    sufficiency: float
    by_chance: tuple[float, float]
    beaten: float
    tau: float


def erased(
    question: Question, ranking: Tensor, shares: Sequence[float] = SHARES
) -> tuple[float, float]:
    """Comprehensiveness and sufficiency of a ranking [n], means over shares of tokens (ERASER).

    f(x) - f(x without its top tokens), and f(x) - f(its top tokens alone). ERASER's sum has one
    more term, that of no tokens at all: pass `shares=(0, ...)` for it.

    >>> words = torch.tensor([[1.0], [3.0], [0.0], [0.0]])
    >>> erased(Question(lambda x: x.sum((1, 2)), words), words[:, 0], shares=(0.25,))
    (3.0, 1.0)
    """
    if not shares or not all(0 <= s <= 1 for s in shares):
        fail(ValueRangeError, "shares", shares, "shares from 0 to 1", f"take {SHARES}")
    n = len(question.embeddings)
    if ranking.shape != (n,):
        fail(ShapeError, "ranking", shape_of(ranking), f"one score for each of {n} tokens", "check")
    order = ranking.argsort(descending=True, stable=True).argsort()
    many = torch.tensor([math.ceil(s * n) for s in shares], device=ranking.device)
    top = (order < many[:, None]).to(question.embeddings.device)
    whole = torch.ones(1, n, dtype=torch.bool, device=top.device)
    scores = question.kept(torch.cat([whole, ~top, top]))
    fell = (scores[0] - scores[1:]).unflatten(0, (2, len(shares))).double().mean(1)
    return float(fell[0]), float(fell[1])


@method(
    "order_in_the_court",
    call="from regard.circuits.faithfulness import head_maps, judged\n"
    "# for verdict in judged(question, head_maps(model, question.embeddings)): print(verdict)",
)
def judged(
    question: Question,
    maps: Mapping[str, Tensor],
    *,
    shares: Sequence[float] = SHARES,
    draws: int = 32,
) -> list[Verdict]:
    """Judge maps [n] by erasing, each beside random rankings; with tau to occlusion.

    Where the maps are those of heads, `sum(v.comprehensiveness for v in ...) / len(...)` is what a
    head taken at random gives.

    >>> words = torch.tensor([[1.0], [3.0], [0.5], [0.0]])
    >>> question = Question(lambda x: x.sum((1, 2)), words)
    >>> (verdict,) = judged(question, {"good": words[:, 0]}, shares=(0.25,))
    >>> verdict.comprehensiveness, verdict.comprehensiveness > verdict.by_chance[0]
    (3.0, True)
    """
    draw = question.draw()
    n = len(question.embeddings)
    blind = [erased(question, torch.rand(n, generator=draw), shares) for _ in range(draws)]
    means = [sum(x) / draws for x in zip(*blind, strict=True)]
    truth = occlusion(question).cpu()
    verdicts = []
    for name, ranking in maps.items():
        both = erased(question, ranking, shares)
        beaten = sum(both[0] > x for x, _ in blind) / draws
        tau = kendall(ranking.cpu(), truth)
        verdicts.append(Verdict(name, *both, (means[0], means[1]), beaten, tau))
    return verdicts


class HeadRows(Stage):
    """Keep the weights of one query, [h, m] for each site: memory is linear in the keys."""

    def __init__(self, row: int = -1, where: Any = None) -> None:
        super().__init__(where)
        self.row = row
        self.found: dict[Site, Tensor] = {}

    def see(self, call: Call, result: Result) -> None:
        """Weigh one row."""
        if not -call.n <= self.row < call.n:
            fail(
                ValueRangeError, "row", self.row, f"a query among {call.n}",
                "count from 0, or from the end with -1",
            )  # fmt: skip
        row = self.row % call.n
        one = rows_of(call, slice(row, row + 1))
        with torch.no_grad():
            self.found[call.site] = closed_weights(one, self.name)[0, :, 0].float().cpu()


def head_maps(model: Any, embeddings: Tensor, *, row: int = -1) -> dict[str, Tensor]:
    """Each head's weights of one query for embeddings [n, d], by name; and "attention", their mean.

    The mean is that of the last layer's heads, as the studies take it; `row` is 0 for models with a
    classification token, -1 for causal ones.
    """
    stage = HeadRows(row)
    with attach(model, stage, check=False), torch.no_grad():
        model(inputs_embeds=embeddings[None])
    maps = {head_name(s, h): x for s, each in stage.found.items() for h, x in enumerate(each)}
    return maps | {"attention": list(stage.found.values())[-1].mean(0)}
