"""Checks of rows about parts of prompts, and about relevance that flows down the layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.analysis.similarity import joint_embedding, neuron_view
from regard.circuits.flow import maximal_flows, rollout
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot
from regard.core.support import Causal, Support, Where
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.seeing import CAUSAL, looked, pointing
from regard.probes.positions import correlation, ranks
from regard.probes.reading import Reading
from regard.probes.rhythm import Rhythm, amplified
from regard.probes.scores import Scores
from regard.probes.spans import (
    Focus,
    SpanShare,
    focus_score,
    important_heads,
    self_preference,
    spans_mass,
)

PLACE = Site(0, module="attention", heads=4, kv_heads=4)


def random(n: int = 24, rule: Rule = CAUSAL, b: int = 1) -> Call:
    """Heads of no pattern."""
    q, k, v = torch.randn(3, b, 4, n, 8, dtype=torch.float64)
    return Call.of(2 * q, k, v, rule, site=PLACE)


def even(call: Call) -> Call:
    """The same with weights that are all alike."""
    return call.replace(q=torch.zeros_like(call.q))


@check("attention_tracker")
def tracker() -> Measured:
    """Heads whose focus an attack takes are chosen, and tell prompts apart; one row is enough."""

    def prompts(attacked: bool) -> list[Scores]:
        made = []
        for _ in range(30):
            mass = 0.4 + 0.15 * torch.rand(16)
            mass[[3, 11]] = (0.1 if attacked else 0.6) + 0.02 * torch.randn(2)
            made.append(Scores("focus", "", {PLACE: mass.clamp(0, 1)}))
        return made

    normal, attacked = prompts(False), prompts(True)
    heads = important_heads(normal, attacked)
    found = (heads.values[PLACE] > 0).nonzero().flatten().tolist()
    counts = [
        int((important_heads(normal, attacked, k=k).values[PLACE] > 0).sum())
        for k in (0.5, 1.0, 2.0, 4.0, 8.0)
    ]
    new, injected = prompts(False), prompts(True)
    good, bad = ([focus_score(x, heads) for x in many] for many in (new, injected))
    area = sum(a > b for a in good for b in bad) / (len(good) * len(bad))
    call = random()
    reading = Reading({}, spans={"instruction": slice(1, 6), "data": slice(6, 20)})
    focus = looked(Focus(definition="mass"), call, reading)
    whole = closed_weights(call, "check")[0, :, -1, 1:6].sum(-1)
    difference = gap(focus, whole)
    shares = looked(Focus(), call, reading)
    return Measured(
        "among 16 noisy heads the two whose weight on the instruction falls from 0.6 to 0.1 are "
        "chosen, and they alone; their mean tells new prompts apart (AUROC 1); a larger k never "
        "adds heads; scores lie in [0, 1]; the last query alone equals the last row of the map",
        found == [3, 11] and area == 1.0 and counts == sorted(counts, reverse=True)
        and difference < 1e-6 and float(shares.min()) >= 0 and float(shares.max()) <= 1,
        {"chosen": str(found), "AUROC": area, "heads for k = 0.5 to 8": str(counts),
         "row against map": difference},
        left_out="real prompts of large models under attack",
    )  # fmt: skip


@check("strategy_relevant_attention")
def strategy() -> Measured:
    """Uniform attention prefers nothing, a partition sums to 1, and nearness counts by ALiBi."""
    spans = {"system": slice(0, 5), "history": slice(5, 16), "strategy": slice(16, 20),
             "answer": slice(20, 24)}  # fmt: skip
    reading = Reading({}, spans=spans)
    flat = looked(SpanShare("strategy", definition="relative"), even(random()), reading)
    probe = SpanShare("strategy")
    looked(probe, random(), Reading({}, spans={**spans, "rest": slice(20, 24)}))
    shares = probe.told().details["shares"].values()
    total = sum(next(iter(x.values())) for x in shares)
    partition = float((total - 1).abs().max())
    near = Rule(Causal(), Dot() >> Alibi.for_heads(4))
    call = even(random(40, near))
    moved = []
    for start in (2, 8, 14, 20, 26, 32):
        there = {"strategy": slice(start, start + 4), "answer": slice(36, 40)}
        moved.append(float(looked(SpanShare("strategy"), call, Reading({}, spans=there)).mean()))
    rises = all(a < b for a, b in pairwise(moved))
    hidden = random(24, Rule(Causal() & ~_columns(16, 20)))
    gone = float(looked(SpanShare("strategy"), hidden, reading).max())
    return Measured(
        "relative to uniform attention, uniform attention gives 1; a masked instruction 0; shares "
        "of a partition sum to 1; under ALiBi the share rises with each step nearer",
        float((flat - 1).abs().max()) < 1e-6 and gone == 0 and partition < 1e-6 and rises,
        {"uniform": float(flat.mean()), "masked": gone, "partition, off by": partition,
         "nearer and nearer": str([round(x, 4) for x in moved])},
        left_out="dialogues, strategy classifiers, and tuning on them",
    )  # fmt: skip


def _columns(start: int, stop: int) -> Support:
    """All pairs with keys in a range."""
    return Where(lambda b, h, i, j: (j >= start) & (j < stop) & (i >= 0))


@check("dbg_self_preference")
def preference() -> Measured:
    """A planted liking is told apart from quality, and shares swap as answers do."""
    quality = torch.rand(400, 2, dtype=torch.float64)
    bias = 0.15
    judged = quality[:, 0] + bias
    found = self_preference(judged, quality[:, 0])
    better = quality.clone()
    better[:, 0] += 0.3
    same = self_preference(better[:, 0] + bias, better[:, 0])
    plain = [float((x[:, 0] + bias - x[:, 1]).mean()) for x in (quality, better)]
    call = random(b=1)
    flat = call.replace(rule=Rule())  # no positions: keys are a set
    a, b, last = slice(4, 10), slice(10, 18), slice(23, 24)
    spans = {"a": a, "b": b, "rest 1": slice(0, 4), "rest 2": slice(18, 24)}
    shares = spans_mass(flat, spans, last)
    total = float((sum(shares.values()) - 1).abs().max())
    order = torch.cat([torch.arange(4), torch.arange(10, 18), torch.arange(4, 10),
                       torch.arange(18, 24)])  # fmt: skip
    swapped = flat.replace(k=flat.k[:, :, order], v=flat.v[:, :, order])
    back = spans_mass(swapped, {"b": slice(4, 12), "a": slice(12, 18)}, last)
    swap = max(gap(back[x], shares[x]) for x in "ab")
    return Measured(
        "a judge with a planted bias of 0.15 is scored 0.15, and still so when its own answers get "
        "better, where own minus other moves by 0.3; shares of attention with the rest sum to 1, "
        "and swap with the answers where no position is seen",
        abs(found - bias) < 1e-6 and abs(same - bias) < 1e-6
        and abs(plain[1] - plain[0] - 0.3) < 1e-6 and total < 1e-6 and swap < 1e-6,
        {"found": found, "found, better answers": same, "own minus other": plain[0],
         "own minus other, better answers": plain[1], "shares, off by": total, "swapped": swap},
        left_out="language models as judges",
    )  # fmt: skip


@check("preplan_anchor")
def rhythm() -> Measured:
    """Signals of known maps have their closed forms, and gamma = 1 changes no advantage."""
    n, width = 40, 10
    uniform = Rhythm(width=width)
    looked(uniform, even(random(n)))
    capped = [sum(min(back, width) for back in range(t + 1)) / (t + 1) for t in range(n)]
    wanted = torch.tensor(capped)
    closed = gap(uniform.lookback().float(), wanted)
    own = Rhythm()
    looked(own, pointing(torch.arange(n).repeat(4, 1)).replace(site=PLACE))
    anchor = Rhythm(near=4, far=50)
    keys = torch.arange(n).clamp(max=5).repeat(4, 1)
    looked(anchor, pointing(keys).replace(site=PLACE))
    influence = float(anchor.influence()[5])
    logits = torch.randn(n, 7, requires_grad=True)
    said, advantage = torch.randint(7, (n,)), torch.randn(n)
    tokens = torch.rand(n) > 0.6
    grads = []
    for weights in (advantage, amplified(advantage, tokens, gamma=1.0)):
        logp = logits.log_softmax(-1)[torch.arange(n), said]
        grads.append(torch.autograd.grad(-(weights * logp).sum(), logits)[0])
    unchanged = gap(grads[0], grads[1])
    return Measured(
        "uniform causal attention gives the mean of min(t - s, W); an identity 0; a token that all "
        "later ones look at has influence 1; with gamma = 1 the gradient is the same, bit by bit",
        closed < 1e-5 and float(own.lookback().abs().max()) == 0 and abs(influence - 1) < 1e-6
        and unchanged == 0,
        {"uniform, off by": closed, "identity": float(own.lookback().abs().max()),
         "influence of an anchor": influence, "gradient, changed by": unchanged},
        left_out="reinforcement learning with these advantages",
    )  # fmt: skip


@check("attention_rollout")
def flows() -> Measured:
    """Rollout sums to 1 and is the Jacobian of a linear model; flow lies within its bounds."""
    n, layers = 10, 3
    calls = [random(n) for _ in range(layers)]
    rows = torch.cat([rollout(calls, p) for p in range(n)])  # [n, n]
    sums = float((rows.sum(1) - 1).abs().max())
    future = float(rows.triu(1).abs().max())
    own = [pointing(torch.arange(n).repeat(4, 1)) for _ in range(layers)]
    identity = gap(torch.cat([rollout(own, p) for p in range(n)]).float(), torch.eye(n))
    full = [even(random(n, Rule())) for _ in range(layers)]
    found = rollout(full, 2)[0]
    wanted = torch.full((n,), (1 - 0.5**layers) / n, dtype=torch.float64)
    wanted[2] += 0.5**layers
    closed = gap(found, wanted)
    maps = [closed_weights(c, "check").mean(1)[0] for c in calls]

    def linear(x: Tensor) -> Tensor:  # values are the states themselves
        for a in maps:
            x = 0.5 * x + 0.5 * a @ x
        return x

    jacobian = torch.autograd.functional.jacobian(linear, torch.randn(n, dtype=torch.float64))
    true = gap(rows, jacobian)
    two = calls[:2]
    flow = maximal_flows(two)[0]
    mixed = [(m + torch.eye(n)) / 2 for m in maps[:2]]
    bottleneck = torch.minimum(mixed[1][-1][:, None], mixed[0]).amax(0)
    lowest = float((flow - bottleneck).min())
    return Measured(
        "rows of the rollout sum to 1, nothing comes from the future, an identity stays one, "
        "uniform attention gives (1 - 2^-L) / n and 2^-L for itself, and a linear model's Jacobian "
        "is the rollout; maximal flows are at least the best single path and at most 1",
        sums < 1e-6 and future == 0 and identity < 1e-6 and closed < 1e-6 and true < 1e-6
        and lowest > -1e-9 and float(flow.max()) <= 1 + 1e-9,
        {"sums, off by": sums, "from the future": future, "identity, off by": identity,
         "uniform, off by": closed, "Jacobian, off by": true, "flow over one path": lowest,
         "largest flow": float(flow.max())},
    )  # fmt: skip


@check("attentionviz")
def joint() -> Measured:
    """Weights stay as they are, distances follow dot products, and partners are neighbors."""
    q, k = 0.2 * torch.randn(80, 16) + 2, 4 * torch.randn(90, 16) - 1
    before = (q.double() @ k.double().T).softmax(1)
    same = 0.0
    for scales in ([0.1], [1.0], [7.0], None):
        made = joint_embedding(q, k, scales)
        same = max(same, gap((made.q @ made.k.T).softmax(1), before))
    made = joint_embedding(q, k)
    moved = k.double() + made.shift
    fits = []
    for c in (1.0, made.scale):
        near = -torch.cdist(c * q.double(), moved / c)
        dots = ranks((q.double() @ moved.T).flatten()[:, None])
        fits.append(float(correlation(dots, ranks(near.flatten()[:, None]))[0, 0]))
    side = torch.tensor([1.0] * 20 + [-1.0] * 20)[:, None]
    sides = [torch.cat([3 * side, 0.1 * torch.randn(40, 7)], 1) for _ in range(2)]
    nearest = torch.cdist(*joint_embedding(*sides).places()).argmin(1)
    together = float(((nearest < 20) == (torch.arange(40) < 20)).double().mean())
    return Measured(
        "for any scale and shift weights are what they were (1e-5); the chosen scale's distances "
        "follow the dot products at least as well as c = 1; in the plane of principal components "
        "queries of two planted groups lie beside the keys they look at",
        same < 1e-5 and fits[1] >= fits[0] and together == 1.0,
        {"weights, off by": same, "rank correlation at c = 1": fits[0], "chosen": fits[1],
         "scale": made.scale, "beside their keys": together},
        left_out="t-SNE and UMAP: places are by principal components",
    )  # fmt: skip


@check("bertviz")
def views() -> Measured:
    """A query laid open gives its row again, and views of sentence pairs share out the weight."""
    worst, parts = 0.0, 0.0
    for rule in (CAUSAL, Rule()):
        call = random(16, rule)
        whole = closed_weights(call, "check")[0]
        for head in range(4):
            for row in range(16):
                view = neuron_view(call, head, row)
                worst = max(worst, gap(view.weights, whole[head, row]))
        found = spans_mass(call, {"a": slice(0, 7), "b": slice(7, 16)})
        parts = max(parts, float((found["a"] + found["b"] - 1).abs().max()))
    return Measured(
        "summing q_i k_j over features, scaling and a softmax give each row of every head (1e-5); "
        "weight on the first and on the second sentence sum to 1",
        worst < 1e-5 and parts < 1e-6,
        {"rows, off by": worst, "sentences, off by": parts},
        left_out="views of line bundles: the page draws maps, which stay readable at any length",
    )  # fmt: skip
