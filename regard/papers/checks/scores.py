"""Checks of rows about how scores are made, and how they become weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.partial import merge
from regard.core.rule import Rule
from regard.core.score import Cope, Dot
from regard.core.support import Causal
from regard.core.weigh import Sigmoid
from regard.layers.attention import joined
from regard.layers.building import model
from regard.layers.normalizers import SigmoidAttention
from regard.layers.relative import ContextualPositions, RelativeAttention
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import Largest, gap
from regard.papers.checks.training import fit
from regard.run.api import attend, partial


@check("sigmoid_attention")
def sigmoid() -> Measured:
    """Shards add without statistics; the bias sets row sums; training needs the bias."""
    q, k, v = (torch.randn(2, 4, 60, 16) for _ in range(3))
    rule = Rule(weigh=Sigmoid(-math.log(60)))
    whole = attend(q, k, v, rule)
    cuts = [slice(0, 7), slice(7, 40), slice(40, 60)]
    parts = [partial(q, k[:, :, c], v[:, :, c], rule) for c in cuts]
    added = max(gap(sum(p.out for p in parts), whole), gap(merge(*parts).out, whole))

    sums = {}
    for n in (64, 512, 4096):
        for name, bias in (("biased", -math.log(n)), ("plain", 0.0)):
            layer = SigmoidAttention(32, heads=2, length=n, bias_of_scores=bias)
            x = torch.randn(1, n, 32)
            ones = torch.ones(1, 2, n, 1)
            q, k = layer.norm_q(layer.queries(x)), layer.norm_k(layer.keys(x)[0])
            sums[f"{name} {n}"] = float(
                attend(q, k, ones, Rule(weigh=layer.weigh()), executor="chunked").mean().detach()
            )
    biased = all(0.5 < sums[f"biased {n}"] < 2.0 for n in (64, 512, 4096))
    plain = all(abs(sums[f"plain {n}"] / (n / 2) - 1) < 0.1 for n in (64, 512, 4096))
    losses = {
        "softmax": _language("mha", qk_norm=nn.LayerNorm),
        "sigmoid": _language("sigmoid_attention", length=64),
        "no bias": _language("sigmoid_attention", length=64, bias_of_scores=0.0),
    }
    close = losses["sigmoid"] < 1.02 * losses["softmax"]
    lags = losses["no bias"] > losses["sigmoid"]
    return Measured(
        "outputs over shards of keys add up; with b = -log n rows sum to about 1, with b = 0 to "
        "n / 2; a tiny language model comes within 2% of softmax's loss with the bias and lags "
        "behind itself without",
        added < 1e-5 and biased and plain and close and lags,
        {"added": added, **{f"row sum, {k}": s for k, s in sums.items()},
         **{f"loss, {k}": x for k, x in losses.items()}},
    )  # fmt: skip


def _language(name: str, steps: int = 250, **settings: object) -> float:
    """Last losses of a tiny model of sequences in which each word repeats an earlier pair."""
    torch.manual_seed(0)
    words = torch.randint(0, 32, (24, 4))
    tiny = model([name] * 2, dim=48, heads=4, vocab=32, position="rotary", **settings)

    def loss() -> Tensor:
        tokens = words[torch.randint(0, 24, (16, 16))].flatten(1)
        return F.cross_entropy(tiny(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    losses = fit(tiny.parameters(), loss, steps)
    return sum(losses[-40:]) / 40


def _skewed_by_hand(layer: RelativeAttention, x: Tensor, reach: int) -> Tensor:
    """The paper's formula, every pair gathered."""
    q, (k, v), n = layer.queries(x), layer.keys(x), x.shape[1]
    place = (torch.arange(n) - torch.arange(n)[:, None]).clamp(-reach, reach) + reach
    gathered = layer.position.table[:, place]  # [h, n, n, d]
    scores = (q @ k.mT + torch.einsum("bhnd,hnmd->bhnm", q, gathered)) / layer.head_dim**0.5
    if layer.causal:
        scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    mixed: Tensor = layer.to_out(joined(scores.softmax(-1) @ v))
    return mixed


@check("music_transformer_rel")
def relative() -> Measured:
    """Distances looked up equal distances gathered; memory is linear; lengths carry over."""
    worst = 0.0
    for n, reach, causal in ((20, 19, True), (33, 8, True), (20, 19, False)):
        layer = RelativeAttention(32, heads=4, reach=reach, causal=causal)
        x = torch.randn(2, n, 32)
        worst = max(worst, gap(layer(x), _skewed_by_hand(layer, x, reach)))
    biggest = {}
    for n in (256, 512):
        layer = RelativeAttention(32, heads=2, reach=n - 1, causal=True)
        with Largest() as seen, torch.no_grad():
            layer(torch.randn(1, n, 32))
        biggest[n] = seen.bytes
    gathered = 512 * 512 * 16 * 2 * 4
    accuracy = {
        "relative": _period("music_transformer_rel", reach=63),
        "absolute": _period("mha", absolute="learned", longest=128),
    }
    return Measured(
        "looked-up distances equal gathered ones; nothing of n x n x d is made; a model trained "
        "at 64 tokens of period 7 keeps its accuracy at 128, where learned absolute positions drop",
        worst < 1e-5 and biggest[512] < gathered / 4
        and accuracy["relative"] > 0.95 and accuracy["absolute"] < accuracy["relative"] - 0.1,
        {"worst": worst, "largest tensor at 512": biggest[512], "gathered would be": gathered,
         "accuracy at 128": accuracy["relative"], "absolute at 128": accuracy["absolute"]},
    )  # fmt: skip


def _period(name: str, **settings: object) -> float:
    """Accuracy beyond place 64 of a model trained on 64 tokens that repeat after 7."""
    torch.manual_seed(0)
    tiny = model([name], dim=32, heads=4, vocab=16, **settings)

    def batch(n: int) -> Tensor:
        return torch.randint(0, 16, (32, 7)).repeat(1, n // 7 + 1)[:, :n]

    def loss() -> Tensor:
        tokens = batch(64)
        return F.cross_entropy(tiny(tokens)[:, 7:-1].flatten(0, 1), tokens[:, 8:].flatten())

    fit(tiny.parameters(), loss, 250, 1e-2)
    tokens = batch(128)
    with torch.no_grad():
        guessed = tiny(tokens)[:, 64:-1].argmax(-1)
    return float((guessed == tokens[:, 65:]).float().mean())


@check("cope")
def contextual() -> Measured:
    """Open gates are relative positions; gates on a marker count it; flip-flops generalize."""
    n, d = 20, 8
    q, k, v = (torch.randn(1, 4, n, d) for _ in range(3))
    table = torch.randn(1, n + 3, d) / d**0.5
    apart = torch.arange(n)[:, None] - torch.arange(n)

    def with_channel(x: Tensor, extra: Tensor) -> Tensor:
        return torch.cat((x, extra.expand(*x.shape[:-1], 1)), -1)

    def contextually(of_query: Tensor, of_key: Tensor, table: Tensor) -> Tensor:
        score = Dot(d**-0.5) + Cope(with_channel(table, torch.zeros(1)))
        return attend(with_channel(q, of_query), with_channel(k, of_key), v, Rule(Causal(), score))

    def explicitly(scores: Tensor) -> Tensor:
        return scores.masked_fill(apart < 0, -torch.inf).softmax(-1) @ v

    # One more channel adds the same large number to every score of a row: all gates are open.
    opened = contextually(torch.tensor([10.0]), torch.tensor([10.0]), table)
    met = (q @ table.mT).gather(-1, (apart + 1).clamp(0).expand(1, 4, n, n))
    relative = gap(opened, explicitly((q @ k.mT) / d**0.5 + met))

    # The channel opens gates at markers alone; e[p] = p a makes the bias count them.
    marks = torch.randint(0, 2, (n,))
    channel = torch.where(marks == 1, 30.0, -30.0)[:, None]
    direction = torch.randn(d) / d
    counting = contextually(
        torch.tensor([d**0.5]), channel, torch.arange(n + 3.0)[None, :, None] * direction
    )
    total = marks.cumsum(0)
    count = (total[:, None] - total + marks).clamp(0)
    bias = (q @ direction)[..., None] * count
    counted = gap(counting, explicitly((q @ k.mT) / d**0.5 + channel[:, 0] + bias))

    layer, x = ContextualPositions(32, heads=4, furthest=8), torch.randn(1, n, 32)
    changed = torch.cat((x[:, :12], torch.randn(1, n - 12, 32)), 1)
    leak = gap(layer(changed)[:, :12], layer(x)[:, :12])
    wrong = {"cope": _flip_flop("cope"), "rotary": _flip_flop("mha", position="rotary")}
    return Measured(
        "open gates give i - j + 1 and ordinary learned positions; gates on a marker count "
        "markers; the future changes nothing; on flip-flops with longer gaps than in training the "
        "error is under 5% where writes are 1 in 10, and below rotary's there and at 1 in 40",
        relative < 1e-4 and counted < 1e-3 and leak < 1e-6 and wrong["cope"][0] < 0.05
        and all(c < r for c, r in zip(wrong["cope"], wrong["rotary"], strict=True)),
        {"open gates": relative, "counted markers": counted, "leak": leak,
         **{f"error, {name}, at {gap_}": x for name, both in wrong.items()
            for gap_, x in zip(("1 in 10", "1 in 40"), both, strict=True)}},
    )  # fmt: skip


def _flip_flops(rows: int, n: int, quiet: float) -> tuple[Tensor, Tensor]:
    """Draw instructions 0 write, 1 ignore, 2 read, each followed by a bit, 3 or 4.

    After a read comes what was last written. Gives tokens [rows, 2 n], and the reads [rows, n].
    """
    kinds = torch.multinomial(
        torch.tensor([(1 - quiet) / 2, quiet, (1 - quiet) / 2]), rows * n, True
    )
    kinds = kinds.view(rows, n)
    kinds[:, 0] = 0
    bits = torch.randint(0, 2, (rows, n))
    place = torch.where(kinds == 0, torch.arange(n), 0).cummax(1).values
    bits = torch.where(kinds == 2, bits.gather(1, place), bits)
    return torch.stack((kinds, bits + 3), -1).flatten(1), kinds == 2


def _flip_flop(name: str, **settings: object) -> list[float]:
    """Errors of reading, on texts with few writes, of a model trained on texts with many."""
    torch.manual_seed(0)
    tiny = model([name] * 2, dim=32, heads=2, vocab=5, **settings)

    def loss() -> Tensor:
        tokens, reads = _flip_flops(32, 24, 0.3)
        scores = tiny(tokens)[:, ::2]
        return F.cross_entropy(scores[reads], tokens[:, 1::2][reads])

    fit(tiny.parameters(), loss, 400, 5e-3)
    errors = []
    for quiet in (0.8, 0.95):
        tokens, reads = _flip_flops(512, 24, quiet)
        with torch.no_grad():
            guessed = tiny(tokens)[:, ::2].argmax(-1)
        errors.append(float((guessed != tokens[:, 1::2])[reads].float().mean()))
    return errors
