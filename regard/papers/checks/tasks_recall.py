"""Checks of rows about recall: what a text has told, and what it has left out."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.bench.records import Run
from regard.bench.training import carry_out
from regard.core.rule import Rule
from regard.core.support import Causal, Everything, Support, Window
from regard.layers.attention import Attention
from regard.layers.base import Capabilities, Layer, LayerInput
from regard.layers.building import model
from regard.layers.convolution import DepthwiseConvolution
from regard.papers.checks import Measured, check
from regard.papers.checks.training import draws, fit
from regard.run.doors import attend
from regard.tasks.hops import Hops, seen_by_window
from regard.tasks.missing import Missing
from regard.tasks.recall import Mqar, Needle
from regard.tasks.verbatim import CONDITIONS, Verbatim, retrieval


class GatedConvolution(Layer):
    """Zoology's BaseConv: a linear map times a convolution of three taps, `(W u + b) * conv(u)`."""

    can = Capabilities(bidirectional=False, cross=False, linear=True, constant_memory=True)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32}

    def __init__(self, dim: int, *, causal: bool = True, taps: int = 3) -> None:
        super().__init__(dim, causal=causal)
        self.gate = nn.Linear(dim, dim)
        self.near = DepthwiseConvolution(dim, size=taps, causal=causal, name="taps", bias=True)

    def compute(self, input: LayerInput) -> Tensor:
        """Gate the neighborhood of each token."""
        gated: Tensor = self.gate(input.x) * self.near(input.x, input)
        return gated


@check("mqar_zoology", long=True)
def recall() -> Measured:
    """Attention recalls where a gated convolution of equal width does not."""
    task = Mqar(vocab=256, length=64, pairs=4)
    batch = task.batch(500, 3)
    told = batch.x[:, :8].view(500, 4, 2)
    rows, places = batch.asked.nonzero().unbind(1)
    earlier = (told[rows, :, 0] == batch.x[rows, places][:, None]).nonzero()
    same = told[rows[earlier[:, 0]], earlier[:, 1], 1] == batch.y[rows, places][earlier[:, 0]]
    once = bool((batch.asked.sum(1) == 4).all()) and len(earlier) == len(rows)

    said = f"{GatedConvolution.__module__}:GatedConvolution"
    settings = {"task": task.said(), "pattern": "cs", "seed": torch.initial_seed(), "steps": 900}
    scores, records = {}, {}
    for name, layer in (("attention", "mha"), ("gated convolution", said)):
        records[name] = carry_out(Run(layer=layer, **settings))  # type: ignore[arg-type]
        scores[name] = records[name]["score"]
    return Measured(
        "every asked token is a key told before, once, whose value is the answer; in the same "
        "backbone (two layers of width 64, 4 heads), after the same 900 steps on the same rows, "
        "attention recalls over 95%, and a gated convolution of three taps under 30%",
        once and bool(same.all()) and scores["attention"] > 0.95
        and scores["gated convolution"] < 0.3,
        {"asked tokens with their value told before": float(same.double().mean()),
         **{f"accuracy, {name}": x for name, x in scores.items()},
         **{f"parameters, {name}": r["parameters"] for name, r in records.items()},
         "chance": task.chance},
        left_out="the sweep over widths and rates, hits of real text, and hybrids that attend at "
        "chosen places; other seeds are in benchmarks/results/orderings.json",
    )  # fmt: skip


def _counted(task: Missing, x: Tensor, support: Support) -> Tensor:
    """Answer by attending evenly to what a support allows: the item of least weight."""
    n = x.shape[1]
    values = nn.functional.one_hot(x, task.items + 1).float()[:, None]
    flat = torch.zeros(len(x), 1, n, 1)
    last = Rule(support).shift(n - 1)  # the question alone looks
    seen = attend(flat[:, :, -1:], flat, values, last)[:, 0, 0, : task.items]
    # Items of equal weight are all as good: one of them at random.
    return (-seen + 1e-6 * torch.rand(seen.shape)).argmax(1)


@check("attention_overflow")
def missing() -> Measured:
    """Even attention counts what is missing at any length; a window or few keys do not."""
    numbers: dict[str, float] = {}
    right = True
    for items in (16, 64, 256, 1024):
        task = Missing(items=items)
        rows = 400 if items < 1000 else 100
        batch = task.batch(rows, items)

        def scored(found: Tensor, task: Missing = task, batch: object = batch) -> float:
            answers = torch.zeros_like(batch.y)  # type: ignore[attr-defined]
            answers[:, -1] = found
            return task.score(answers, batch)  # type: ignore[arg-type]

        whole = scored(_counted(task, batch.x, Everything()))
        # A window of w items and the question leaves N - w that it has not seen.
        width = items // 2
        near = scored(_counted(task, batch.x, Causal() & Window(width + 1)))
        bound = 1 / (items - width)
        few = items // 4
        kept = torch.rand(batch.x.shape).argsort(1).argsort(1) < few
        some = torch.where(kept, batch.x, task.items)
        sparse = scored(_counted(task, some, Everything()))
        numbers |= {f"whole, {items} items": whole, f"window of half, {items} items": near,
                    f"bound of the window, {items} items": bound,
                    f"a quarter of the keys, {items} items": sparse}  # fmt: skip
        error = 3 * (bound * (1 - bound) / rows) ** 0.5
        right = right and whole == 1.0 and near <= bound + error and sparse < whole
    return Measured(
        "even attention over one-hot items, and the item of least weight, names the missing one in "
        "every row of 16 to 1,024 items; a window of w items is right in no more than 1/(N - w) of "
        "rows, within three standard errors; a quarter of the keys is worse than all",
        right, numbers,
        left_out="language models and lists of movies; sparse attention is of random keys",
    )  # fmt: skip


@check("longagent_needle_plus")
def hops() -> Measured:
    """Two hops need two, answers stand once, and a window finds its share of depths."""
    two, one = Hops(hops=2, chains=4), Hops(hops=1, chains=4)
    b2, b1 = two.batch(2000, 1), one.batch(2000, 2)
    answer = b2.y[:, -1:]
    unique = bool(((b2.x[:, :-1] == answer).sum(1) == 1).all())
    solved = (one.score(one.followed(b1, 1), b1), two.score(two.followed(b2, 2), b2))
    short = two.score(two.followed(b2, 1), b2)

    width, length = 40, 64
    found, inside = [], []
    for depth in range(0, 62, 3):
        task = Needle(length=length, depth=depth / 61)
        batch = task.batch(20, depth)
        answers = seen_by_window(batch.x, width).where(batch.asked, 0)
        found.append(task.score(answers, batch))
        inside.append(float(int(batch.x[0].eq(1).to(torch.uint8).argmax()) > length - 1 - width))
    share, fraction = sum(found) / len(found), sum(inside) / len(inside)
    return Measured(
        "of 2,000 two-hop rows each holds its answer once; following one pair solves one hop and "
        "following two solves two, always; following one pair is no better than chance on two "
        "hops; "
        " recall through a window of 40 of 64 tokens is right at just the depths inside it",
        unique and solved == (1.0, 1.0) and short <= two.chance and abs(share - fraction) < 1e-9,
        {"answers told once": unique, "one hop solved": solved[0], "two hops solved": solved[1],
         "two hops by one": short, "chance": two.chance, "found through the window": share,
         "depths inside the window": fraction},
        left_out="language models, passages in words, and readers that confer",
    )  # fmt: skip


def _surprise(outputs: Tensor, task: Verbatim, condition: str, seed: int) -> float:
    batch = replace(task, condition=condition, mixed=0.0).batch(len(outputs), seed)
    return retrieval(*task.surprisals(outputs, batch))


def _said_by(net: nn.Module, task: Verbatim) -> dict[str, float]:
    found = {}
    for condition in CONDITIONS:
        batch = replace(task, condition=condition, mixed=0.0).batch(230, 99)
        with torch.no_grad():
            found[condition] = retrieval(*task.surprisals(net(batch.x), batch))
    return found


@check("verbatim_recall", long=True)
def verbatim() -> Measured:
    """Perfect copying scores 0, no memory 100, and a model that attends lies between, by order."""
    task = Verbatim(nouns=5, gap=10, vocab=32, mixed=0.5)
    perfect = {}
    for condition in ("repeat", "novel"):
        same = replace(task, condition=condition, mixed=0.0)
        batch = same.batch(230, 99)
        # Knows the first list; is sure of it where it is told again, and knows no more of others.
        copied = same.oracle(batch)
        sure = 30.0 * (copied == batch.y)[..., None] * nn.functional.one_hot(copied, 49)
        start = batch.asked[..., None] * sure
        perfect[condition] = _surprise(start, same, condition, 99)
    even = torch.zeros(230, task.longest, 49)
    unigram = {c: _surprise(even, task, c, 99) for c in CONDITIONS}

    net = model(["mha"] * 2, dim=64, heads=4, vocab=49, position="rotary", tied=False)
    step = draws()

    def loss() -> Tensor:
        batch = task.batch(64, next(step))
        return nn.functional.cross_entropy(net(batch.x).flatten(0, 1), batch.y.flatten())

    fit(net.parameters(), loss, 900, 2e-3)
    trained = _said_by(net, task)
    shuffled = copy.deepcopy(net)
    with torch.no_grad():
        for layer in shuffled.modules():
            if isinstance(layer, Attention):
                for part in (layer.to_q, layer.to_k):
                    part.weight.copy_(part.weight[torch.randperm(len(part.weight))])
    broken = _said_by(shuffled, task)
    ordered = trained["repeat"] < trained["permuted"] < trained["novel"]
    lost = broken["repeat"] > 0.9 * broken["novel"]
    return Measured(
        "the retrieval score of an ideal copy is under 1 for a repeated list and 100 for a new "
        "one, "
        "and 100 everywhere for a model of single words; a small model that attends has repeat < "
        "permuted < novel, and with the rows of its query and key maps shuffled repeat is within a "
        "tenth of novel",
        perfect["repeat"] < 1 and abs(perfect["novel"] - 100) < 1
        and all(abs(x - 100) < 1e-3 for x in unigram.values()) and ordered and lost,
        {**{f"ideal copy, {k}": v for k, v in perfect.items()},
         **{f"single words, {k}": v for k, v in unigram.items()},
         **{f"trained, {k}": v for k, v in trained.items()},
         **{f"queries and keys shuffled, {k}": v for k, v in broken.items()}},
        left_out="language models, real nouns, the LSTM, and the sweep over lengths and delays",
    )  # fmt: skip
