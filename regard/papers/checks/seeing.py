"""Checks of rows about what heads do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.core.weigh import Softmax
from regard.layers.attention import Attention
from regard.layers.building import model
from regard.models.attach import attach
from regard.models.engine import Engine
from regard.models.site import Site
from regard.models.stage import Edit
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit
from regard.papers.seeding import restart
from regard.probes.base import Probe
from regard.probes.importance import Importance, taken_out
from regard.probes.reading import Reading
from regard.probes.roles import DuplicateToken, Induction, PreviousToken, Retrieval
from regard.probes.shape import Rings
from regard.probes.sinks import MassiveActivations, SinkRate
from regard.probes.stimuli import repeated
from regard.run.doors import attend

CAUSAL = Rule(Causal())


def looked(probe: Probe, call: Call, reading: Reading | None = None) -> Tensor:
    """Score one call, and give the numbers by head."""
    site = call.site or Site(0, module="attention", heads=call.h, kv_heads=call.g)
    if reading is not None:
        probe.show(reading)
    Engine([probe]).run(call.replace(site=site))
    return probe.told().values[site]


def pointing(keys: Tensor, sharp: float = 1e4) -> Call:
    """Heads whose query i looks at keys[h, i] alone."""
    h, n = keys.shape
    eye = torch.eye(n)
    return Call(sharp * eye[keys][None], eye.expand(1, h, n, n), eye.expand(1, h, n, n), CAUSAL)


@check("attention_sink_metric")
def sinks() -> Measured:
    """Known maps have their known rates, and a key of no value takes weight and gives nothing."""
    uniform = Call(*(torch.zeros(2, 3, 64, 4),) * 3, CAUSAL)
    alpha = float(looked(SinkRate(), uniform).mean())
    wanted = sum(1 / i for i in range(1, 65)) / 64
    resting, none = SinkRate(), SinkRate()
    looked(resting, pointing(torch.zeros(4, 64, dtype=torch.long)))
    looked(none, uniform)
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    sink = torch.full((2,), 50.0)
    gone = float(attend(q, k, v, Rule(Causal(), weigh=Softmax(sink=sink))).abs().max())
    return Measured(
        "uniform causal attention over 64 tokens gives alpha_1 = 0.074 and no sink at 0.3; heads "
        "that rest on the first token give Sink_1 = 100%; where a key bias without a value takes "
        "all the weight, the output is zero",
        abs(alpha - wanted) < 1e-6 and resting.told().details["rate"] == 1.0
        and none.told().details["rate"] == 0.0 and gone < 1e-6,
        {"alpha": alpha, "by the formula": wanted, "rate, resting": resting.told().details["rate"],
         "rate, uniform": none.told().details["rate"], "output beside a sink": gone},
        left_out="pretraining of 60M-parameter variants, where sinks arise",
    )  # fmt: skip


@check("retrieval_head")
def retrieval() -> Measured:
    """A copying head scores 1, all others 0; without it the copying is gone, without others not."""
    n, needle, answer = 40, slice(8, 13), slice(35, 40)
    tokens = torch.arange(100, 100 + n)
    tokens[answer] = tokens[needle]
    keys = torch.arange(n).repeat(4, 1)
    for step in range(5):  # the query before each word of the answer looks at that word
        keys[2, answer.start - 1 + step] = needle.start + step
        keys[1, answer.start - 1 + step] = 3
    reading = Reading({"input_ids": tokens[None]}, spans={"needle": needle, "answer": answer})
    call = pointing(keys)
    scores = looked(Retrieval(), call, reading)
    counted = looked(Retrieval(definition="counts"), call, reading)

    words = F.one_hot(tokens, 200).float()[None, None].expand(1, 4, -1, -1)
    site = Site(0, module="attention", heads=4, kv_heads=4)
    said = call.replace(v=words, site=site)

    def copied(out_of: list[int]) -> float:
        gone = taken_out([(site, head) for head in out_of])
        rows = torch.arange(answer.start - 1, answer.stop - 1)
        # Other heads look at the token itself, or at token 3: not what is said next.
        told = Engine([gone]).run(said).sum(1)[0][rows]
        told.scatter_(1, tokens[rows, None], 0.0)
        told[:, tokens[3]] = 0.0
        return float((told.argmax(-1) == tokens[answer]).float().mean())

    without_it, without_others = copied([2]), copied([0, 1, 3])
    return Measured(
        "of four made heads the one that copies a needle scores 1 and the others 0, by the set and "
        "by counting; scores lie in [0, 1]; with it taken out nothing is copied, with all the "
        "others taken out all is",
        scores.tolist() == [0, 0, 1, 0] and counted.tolist() == [0, 0, 1, 0]
        and without_it == 0 and without_others == 1,
        {"scores": str(scores.tolist()), "copied without it": without_it,
         "copied without the others": without_others},
        left_out="the models of the paper; the demo model's own ablation is in its card",
    )  # fmt: skip


@check("induction_heads", long=True)
def induction() -> Measured:
    """Two layers learn to copy what followed, by a head that can be found; one layer does not."""
    two, loss_two = _copier(2)
    _, loss_one = _copier(1)
    reading = repeated(40, period=16, rows=64, seed=5)
    probes: list[Probe] = [Induction(), PreviousToken(), DuplicateToken()]
    for probe in probes:
        probe.show(reading)
    assert reading.tokens is not None
    with attach(two, probes, check=False), torch.no_grad():
        two(reading.tokens)
    best = [probe.told().top(1)[0] for probe in probes[:2]]
    found = [(h.site, h.head) for h in probes[0].told().heads() if h.value > 0.3]
    gone = taken_out(found)
    with attach(two, gone, check=False):
        broken = _repeat_loss(two)
    chance = torch.tensor(40.0).log()
    return Measured(
        "a two-layer attention-only model trained on repeated random tokens predicts the repeats "
        "(loss under 0.5 nats) through a head whose prefix matching is over 0.5, in the layer "
        "after a previous-token head over 0.5; without the heads over 0.3 the loss is over three "
        "times as high; a one-layer model stays above 2 nats",
        loss_two < 0.5 and best[0].value > 0.5 and best[1].value > 0.5
        and best[1].site.layer < best[0].site.layer and broken > 3 * loss_two and loss_one > 2,
        {"loss, two layers": loss_two, "loss, one layer": loss_one, "chance": float(chance),
         "induction": best[0].value, "in layer": best[0].site.layer,
         "previous token": best[1].value, "of layer": best[1].site.layer,
         "loss without them": broken, "taken out": len(found)},
        left_out="the phase change of large models; the demo model's is in its training log",
    )  # fmt: skip


def _copier(layers: int) -> tuple[nn.Module, float]:
    """Train attention-only layers on random tokens shown twice; give the loss on the repeat."""
    restart()
    tiny = model(
        [Attention(64, heads=4, causal=True, position="rotary") for _ in range(layers)],
        vocab=40, dim=64, feedforward=None, tied=False,
    )  # fmt: skip
    fit(tiny.parameters(), lambda: _loss(tiny, 32), 600, 6e-3)
    return tiny, _repeat_loss(tiny)


def _loss(tiny: nn.Module, rows: int) -> Tensor:
    # The period differs from batch to batch, or a head could look a fixed distance back.
    period = int(torch.randint(6, 21, ()))
    tokens = torch.randint(0, 40, (rows, period)).repeat(1, 40 // period + 1)[:, :40]
    said = tiny(tokens)[:, period:-1]
    return F.cross_entropy(said.flatten(0, 1), tokens[:, period + 1 :].flatten())


def _repeat_loss(tiny: nn.Module) -> float:
    restart()
    with torch.no_grad():
        return sum(float(_loss(tiny, 32)) for _ in range(12)) / 12


@check("sixteen_heads")
def importance() -> Measured:
    """The gradient of a gate is <out, dL/dout>, and its order prunes better than chance."""
    two, _ = _copier(2)
    restart()
    stretch = torch.randint(0, 40, (6, 16))
    tokens = torch.cat([stretch, stretch], 1)
    probe, kept = Importance(definition="raw"), dict[Site, Tensor]()

    def keep(x: Tensor) -> Tensor:
        kept[len(kept)] = x  # type: ignore[index]
        x.retain_grad()
        return x

    def loss() -> Tensor:
        each = F.cross_entropy(
            two(tokens)[:, 16:-1].transpose(1, 2), tokens[:, 17:], reduction="none"
        )
        return each.mean(1).sum()

    with attach(two, [Edit("out", keep), probe], check=False):
        loss().backward()
        gates = list(probe.gates.values())
        felt = [g.grad.abs()[..., 0, 0] for g in gates if g.grad is not None]
        by_gate = torch.stack([x.mean(0) for x in felt])
    by_output = torch.stack(
        [(x * x.grad).sum((2, 3)).abs().mean(0) for x in kept.values() if x.grad is not None]
    )
    difference = gap(by_gate, by_output)

    sites = list(probe.gates)
    places = [(sites[s], h) for s in range(2) for h in range(4)]
    scaled = by_gate / by_gate.norm(dim=1, keepdim=True)
    order = sorted(places, key=lambda p: float(scaled[sites.index(p[0]), p[1]]))

    def pruned(heads: list[tuple[Site, int]]) -> float:
        with attach(two, taken_out(heads), check=False):
            return _repeat_loss(two)

    ours = pruned(order[:3])
    shuffles = [torch.randperm(8).tolist()[:3] for _ in range(10)]
    chance = sum(pruned([places[i] for i in few]) for few in shuffles) / 10
    return Measured(
        "the gradient of a gate on a head equals <out, dL/dout>; with three of eight heads taken "
        "out, those of least importance cost less than the mean of ten random choices",
        difference < 1e-5 and ours < chance,
        {"gate against output": difference, "loss, least important": ours,
         "loss, random": chance},
    )  # fmt: skip


@check("massive_activations")
def massive() -> Measured:
    """What was planted is found; an extra key that no one meets, or of no value, changes little."""
    x = torch.randn(2, 12, 32)
    x[1, 7, 19] = -1e4
    layers = nn.ModuleList([nn.Identity()])
    with MassiveActivations.of(layers) as watch:
        layers[0](x)
    q, k, v = torch.randn(3, 2, 4, 12, 8)
    plain = attend(q, k, v, CAUSAL)

    def with_key(score: float) -> Tensor:
        weigh = Softmax(sink=torch.full((4,), score))
        return attend(q, k, v, Rule(Causal(), weigh=weigh))

    unseen = gap(with_key(-1e4), plain)
    ones = gap(with_key(0.0), attend(q, k, v, Rule(Causal(), weigh=Softmax(plus_one=True))))
    return Measured(
        "an entry of -10,000 planted in one token is found, and it alone; an extra key whose score "
        "goes to -inf leaves attention as it is; one of score 0 and no value adds 1 to the sum",
        watch.found == [("layer 0", 7, 19, -1e4)] and unseen < 1e-6 and ones < 1e-6,
        {"found": str(watch.found), "unseen key": unseen, "plus one": ones},
        left_out="interventions on large models, where such states are",
    )  # fmt: skip


@check("vit_head_profile")
def rings() -> Measured:
    """Rings and the class token share out all weight; known heads have known rings."""
    rows = columns = 5
    n = 1 + rows * columns
    site = Site(0, module="attention", heads=2, kv_heads=2, grid=(rows, columns))
    q, k, v = torch.randn(3, 1, 2, n, 8)
    probe = Rings()
    looked(probe, Call(q, k, v, Rule(), site=site))
    total = next(iter(probe.told().details["rings"].values())).sum(1)
    whole = float((total - 1).abs().max())

    step = torch.arange(n)
    step[1:] = torch.where(step[1:] % columns == 0, step[1:] - 1, step[1:] + 1)
    shifted = pointing(step.repeat(2, 1)).replace(rule=Rule(), site=site)
    one = Rings()
    looked(one, shifted)
    near = float(next(iter(one.told().details["rings"].values()))[:, 1].min())

    even = Rings()
    looked(even, Call(*(torch.zeros(1, 2, n, 4),) * 3, Rule(), site=site))
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    hops = (place[:, None] - place).abs().amax(-1)
    wanted = torch.stack([(hops == h).double().sum(1).mean() for h in range(rows)]) / n
    uniform = gap(next(iter(even.told().details["rings"].values()))[0, :-1], wanted)

    layer = Attention(16, heads=2)
    with torch.no_grad():
        layer.to_out.weight[:, 8:] = 0
    x = torch.randn(1, 9, 16)
    with attach(layer, check=False) as found:
        (attends,) = list(found.sites)
    with attach(layer, taken_out([(attends, 1)]), check=False):
        without = layer(x).detach()
    unfelt = gap(layer(x), without)
    return Measured(
        "weight by rings and the class token sums to 1; a shift by one patch puts all of it on "
        "ring 1; uniform attention gives the histogram of ring sizes; taking out a head whose "
        "output is not used changes nothing",
        whole < 1e-6 and near > 1 - 1e-6 and uniform < 1e-6 and unfelt == 0,
        {"sum": whole, "ring 1 of a shift": near, "uniform": uniform,
         "change without an unused head": unfelt},
        left_out="importance on trained vision transformers, and the space of their patterns",
    )  # fmt: skip
