"""Checks of rows that read heads in words: lenses, logits, weights, positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.analysis.compress import Compressed, subspace
from regard.circuits.lenses import train_lenses
from regard.circuits.patching import knockout
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.layers.attention import Attention
from regard.layers.building import model as stack
from regard.models.attach import attach, hook_of
from regard.models.loading import load
from regard.models.projections import HeadWeights
from regard.models.residual import watched
from regard.models.site import Site
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.seeing import looked
from regard.papers.checks.training import fit
from regard.papers.checks.wired import PlainNorm
from regard.probes.logits import (
    TokenLens,
    agreement,
    logit_parts,
    mlp_decomposition,
    weighted_vote,
)
from regard.probes.parameters import Relation, Vocabulary, written
from regard.probes.positions import RotaryPairs, contributions
from regard.probes.reading import Reading
from regard.probes.spans import SpanShare

TEXT = "def wrap(text, width=70):\n    return text\n\ndef fill(text, width=70):\n    return "


def demo() -> tuple[nn.Module, Tensor]:
    """The model that ships, in float64, and some ids."""
    model, tokenizer = load(None)
    ids: Tensor = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    return model.double(), ids


@check("token_lens")
def token_lens() -> Measured:
    """What tokens bring sums to the layer; a trained lister turns against what it has said."""
    model, ids = demo()
    n = ids.shape[1]
    lenses = [TokenLens(some) for some in ([0], range(1, 9), range(9, n))]
    with attach(model, lenses, check=False), torch.no_grad():
        model(ids)
    stream = watched(model, ids)
    parts = max(
        gap(sum(lens.said[layer.site] for lens in lenses), stream.heads(layer.site)[:, :, -1])
        for layer in stream.layers
    )
    alone = 0.0

    def own(call: Call) -> None:
        nonlocal alone
        alone = max(alone, float((closed_weights(call, "check")[0, :, -1, -1] - 1).abs().max()))

    class Look(Stage):
        def observe(self, call: Call) -> None:
            own(call)

    others = knockout([n - 1], range(n - 1))
    with attach(model, [others, Look()], check=False), torch.no_grad():
        model(ids)
    lister, sets = _lister()
    ids = _lists(sets, 64)
    lens = TokenLens([1, 2, 3], row=3)
    with attach(lister, lens, check=False), torch.no_grad():
        lister(ids)
    last = list(lens.said)[-1]
    logits = lens.logits(last)
    logits = logits - logits.mean(1, keepdim=True)
    said = float(logits.gather(1, ids[:, 1:4]).mean())
    left = float(logits.gather(1, ids[:, 4:6]).mean())
    with torch.no_grad():
        right = lister(ids)[:, 3].argmax(-1)
    listed = float((right[:, None] == ids[:, 4:6]).any(1).double().mean())
    return Measured(
        "what a partition of tokens brings sums to the layer's heads (1e-5); where all others are "
        "knocked out a token looks at itself with weight 1; in a model trained to list a subject's "
        "members without repeating any, the answers given speak against themselves: what they "
        "bring is a logit lower by over 1 for them than for the answers left (its sign, against "
        "the mean of all words, is reported)",
        parts < 1e-5 and alone < 1e-6 and listed > 0.95 and left - said > 1,
        {"partition, off by": parts, "self weight, off by": alone, "lists without repeats": listed,
         "logits of answers given": said, "logits of answers left": left},
        left_out="large models on country and city lists; MLPs, which are in logit_parts",
    )  # fmt: skip


def _lists(sets: Tensor, rows: int) -> Tensor:
    """A subject, then its five members in some order."""
    subject = torch.randint(len(sets), (rows,))
    order = torch.rand(rows, 5).argsort(1)
    return torch.cat([subject[:, None], sets[subject].gather(1, order)], 1)


def _lister() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    sets = torch.stack([8 + torch.randperm(16)[:5] for _ in range(8)])
    tiny = stack(
        [Attention(48, heads=4, causal=True, position="rotary") for _ in range(2)],
        vocab=24, dim=48, tied=False,
    )  # fmt: skip

    def loss() -> Tensor:
        ids = _lists(sets, 64)
        return F.cross_entropy(tiny(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    fit(tiny.parameters(), loss, 400, 5e-3)
    return tiny.eval(), sets


@check("attention_lens")
def attention_lens() -> Measured:
    """Heads sum to the layer; the lens of the head that tells reaches the model, others do not."""
    model, ids = demo()
    stream = watched(model, ids)
    whole, outs = {}, {}
    for layer in stream.layers:
        module = model.get_submodule(layer.site.module)
        module.register_forward_hook(lambda m, a, o, site=layer.site: outs.__setitem__(site, o[0]))
    with torch.no_grad():
        model(ids)
    for layer in stream.layers:
        made = stream.heads(layer.site).sum(1) + stream.bias(layer.site)
        whole[layer.site] = gap(made, outs[layer.site])
    torch.manual_seed(0)
    tiny = stack(
        [Attention(16, heads=4, causal=True)], vocab=12, dim=16, feedforward=None, tied=False,
    )  # fmt: skip
    tiny.norm = PlainNorm()  # logits are linear in what is said
    mixer = tiny.stack.blocks[0].mixer
    with torch.no_grad():
        mixer.to_out.weight[:, :4] *= 30.0  # the first head alone says something
        mixer.to_out.weight[:, 4:] = 0.0
        tiny.embedding.weight *= 1e-3
        tiny.head.weight *= 3.0
        mixer.to_v.weight *= 50.0
    ids = torch.randint(0, 12, (64, 20))
    site = hook_of(tiny)[1][0]
    lenses = train_lenses(tiny, ids, [(site, h) for h in range(4)], steps=1500, rate=1e-2)
    with torch.no_grad():
        target = tiny(ids).log_softmax(-1).flatten(0, 1)
    unigram = target.exp().mean(0).log()
    floor = float(F.kl_div(unigram.expand_as(target), target, log_target=True,
                           reduction="batchmean"))  # fmt: skip
    losses = [lenses.loss[site, h] for h in range(4)]
    return Measured(
        "heads and bias sum to the output of each attention of the shipped model (1e-5); where one "
        "head alone makes the logits its lens comes within a tenth of the unigram's divergence, "
        "and lenses of silent heads stay at the unigram's (10%)",
        max(whole.values()) < 1e-5 and losses[0] < 0.1 * floor
        and all(abs(x - floor) < 0.1 * floor for x in losses[1:]),
        {"sum, off by": max(whole.values()), "divergence of the unigram": floor,
         "lens of the head that tells": losses[0], "lenses of silent heads": str(
             [round(x, 4) for x in losses[1:]])},
        left_out="GPT-2's 144 lenses, and their themes",
    )  # fmt: skip


@check("internal_consistency")
def consistency() -> Measured:
    """Layers that add to one answer agree, a last layer that flips agrees with none."""
    torch.manual_seed(0)
    steps = torch.rand(32, 12, 1).cumsum(1)
    direction = torch.randn(32, 1, 4)
    steady = float(agreement(steps * direction).agreement.mean())
    flips = steps * direction
    flips[:, -1] = -flips[:, -1] * 3 + torch.randn(32, 4)
    low = float(agreement(flips).agreement.mean())
    answers = torch.randint(3, (200, 7))
    votes = [weighted_vote(row, [1.0] * 7) for row in answers.tolist()]
    plain = [max(dict.fromkeys(row), key=row.count) for row in answers.tolist()]
    model, ids = demo()
    n = ids.shape[1]
    spans = {"context": slice(0, 10), "question": slice(10, 18), "rationale": slice(18, 24),
             "query": slice(24, n)}  # fmt: skip
    probe = SpanShare("context")
    probe.show(Reading({}, spans=spans))
    with attach(model, probe, check=False), torch.no_grad():
        model(ids)
    shares = probe.told().details["shares"]
    total = [sum(x[site] for x in shares.values()) for site in shares["context"]]
    off = max(float((x - 1).abs().max()) for x in total)
    return Measured(
        "if every layer adds a positive multiple of one direction all agree (1); where the last "
        "layer flips few do; with equal weights the vote is the majority's; attention of the last "
        "token over four segments sums to 1",
        steady == 1.0 and low < 0.2 and votes == plain and off < 1e-5,
        {"steady": steady, "flipped": low, "votes like the majority": votes == plain,
         "segments, off by": off},
        left_out="reasoning paths of large models",
    )  # fmt: skip


@check("chinchilla_mcq_circuit")
def compression() -> Measured:
    """Parts sum to the logits; few dimensions of queries and keys carry few directions."""
    model, ids = demo()
    stream = watched(model, ids)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    letters = logits.topk(4).indices
    parts = max(
        abs(float(logit_parts(stream, int(t)).total[0]) - float(logits[t])) for t in letters
    )
    site = Site(0, module="attention", heads=1, kv_heads=1)
    torch.manual_seed(0)
    # Four labels that differ along three directions, in 16 dimensions of noise.
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    frame = torch.linalg.qr(torch.randn(16, 16).double()).Q
    which = torch.randint(4, (400,))
    labels = 6 * corners @ frame[:, :3].T
    k = labels.expand(400, 4, 16) + 0.05 * torch.randn(400, 4, 16).double()
    q = (6 * corners @ frame[:, :3].T)[which][:, None] + 0.05 * torch.randn(400, 1, 16).double()

    def right(rank: int) -> tuple[float, float]:
        stage = Compressed({(site, 0): subspace(q[:, 0], k.flatten(0, 1), rank)})
        plain = Call(q[:, None], k[:, None], k[:, None], Rule(), site=site)
        less = stage.before(plain)
        maps = [closed_weights(c, "check")[:, 0, 0] for c in (plain, less)]
        return float((maps[1].argmax(1) == which).double().mean()), gap(*maps)

    full, three, one = right(16), right(3), right(1)
    return Measured(
        "with the norm's scale held, all parts sum to each letter's logit (1e-4); projecting to "
        "all dimensions of a head changes nothing; of labels that differ along three directions "
        "three dimensions keep over 99% and one does not",
        parts < 1e-4 and full[1] < 1e-8 and three[0] > 0.99 and one[0] < 0.9,
        {"logits, off by": parts, "all dimensions, off by": full[1], "right with 3": three[0],
         "right with 1": one[0]},
        left_out="Chinchilla 70B",
    )  # fmt: skip


@check("factual_recall_mechanism")
def recall() -> Measured:
    """Parts sum to the logit, and planted coefficients of an MLP are found again."""
    model, ids = demo()
    stream = watched(model, ids)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    token = int(logits.argmax())
    found = logit_parts(stream, token)
    off = abs(float(found.total[0]) - float(logits[token]))
    torch.manual_seed(0)
    one, two, answer = torch.randn(3, 50, 24).double()
    noise = 1e-3 * torch.randn(50, 24).double()
    planted = 2 * one - two + 0.5 * answer + noise
    solved = mlp_decomposition(planted, {"head 1": one, "head 2": two, "answer": answer})
    wanted = {"head 1": 2.0, "head 2": -1.0, "answer": 0.5}
    worst = max(abs(solved[x] - wanted[x]) for x in wanted)
    return Measured(
        "heads, MLPs and embedding sum to the logit with the norm held (1e-4); an MLP planted as "
        "2 head 1 - head 2 + half the answer is taken apart into these",
        off < 1e-4 and worst < 1e-2,
        {"logit, off by": off, "coefficients, off by": worst},
        left_out="capitals in GPT-2 and others",
    )  # fmt: skip


class _Words(nn.Module):
    """A vocabulary of orthogonal words."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.eye(count))
        self.head = nn.Linear(count, count, bias=False)
        self.head.weight.data.copy_(torch.eye(count))

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        """Its inverse."""
        return self.head


@check("maps_heads")
def relations() -> Measured:
    """Heads made to copy and to map are found in their weights, and weights foretell outputs."""
    count = 64
    model, eye = _Words(count), torch.eye(count)
    turn = torch.randperm(count)
    weights = HeadWeights(*(eye.expand(3, -1, -1),) * 3, torch.stack([eye, eye[turn], -eye]))
    own, mapped = [(i, i) for i in range(count)], [(i, int(turn[i])) for i in range(count)]
    with torch.no_grad():
        copy, other = (Relation(pairs, k=1).read(model, weights) for pairs in (own, mapped))
        against = Relation(own, k=1, definition="suppresses").read(model, weights)
    torch.manual_seed(1)
    heads = 24
    strength = torch.rand(heads)[:, None, None]
    noisy = 0.25 * strength * eye[turn] + 0.06 * torch.randn(heads, count, count)
    many = HeadWeights(*(eye.expand(heads, -1, -1),) * 3, noisy)
    with torch.no_grad():
        static = Relation(mapped, k=3).read(model, many)
    # At work: each head looks mostly at one token among four, and its output is read in words.
    source, rest = torch.randint(count, (200,)), torch.randint(count, (200, 3))
    words = Vocabulary.of(model)
    others = torch.stack([written(words, many, rest[:, i]) for i in range(3)]).mean(0)
    said = 0.7 * written(words, many, source) + 0.3 * others
    target = turn[source]
    hit = (said.topk(3, dim=-1).indices == target[None, :, None]).any(-1)
    dynamic = hit.double().mean(1)
    together = float(torch.corrcoef(torch.stack([static.double(), dynamic]))[0, 1])
    return Measured(
        "a head made to copy and one made to map score 1 on their own relation and under 0.05 on "
        "the other's; turned around, copying is suppression; over 24 noisy heads weights foretell "
        "outputs (r > 0.7)",
        copy.tolist()[0] == 1 and other.tolist()[1] == 1 and float(copy[1]) < 0.05
        and float(other[0]) < 0.05 and against.tolist() == [0, 0, 1] and together > 0.7,
        {"copying, by head": str(copy.tolist()), "mapping, by head": str(other.tolist()),
         "suppression, by head": str(against.tolist()), "weights and outputs, r": together},
        left_out="relations of large models, and descriptions of their operations",
    )  # fmt: skip


@check("rope_positional_heads")
def rotary() -> Measured:
    """Pairs sum to the score; slow pairs tell distance; the model that ships reads far by them."""
    n, d = 256, 32
    torch.manual_seed(0)
    x = torch.zeros(1, 3, n, d)
    x[:, 0, :, d // 2 - 3 : d // 2] = 1.0
    x[:, 1, :, :3] = 1.0
    x[:, 2] = torch.randn(n, d)
    angle = torch.arange(n)[:, None] * 10000.0 ** (-2 * torch.arange(d // 2) / d)
    a, b = x.chunk(2, -1)
    q = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
    k = q.clone()
    q[:, 2], k[:, 2] = x[:, 2], torch.randn(n, d)  # not turned
    call = Call(q.double(), k.double(), k.double(), Rule(Causal()))
    scores = looked(RotaryPairs(), call)
    i, j = torch.tensor([200, 9, 31]), torch.tensor([3, 9, 30])
    whole = (call.q @ call.k.transpose(-1, -2)) * d**-0.5
    off = max(gap(x.sum(1), whole[0, h, i, j]) for h, x in enumerate(contributions(call, i, j)))
    return Measured(
        "contributions of rotary pairs sum to the score (1e-5); a head with its energy in the "
        "slowest pairs ranks first, one with it in the fastest last, one without positions near 0",
        off < 1e-5 and int(scores.argmax()) == 0 and float(scores[1]) <= float(scores.min())
        and float(scores[2]) < 0.05,
        {"pairs, off by": off, "slowest pairs": float(scores[0]), "fastest": float(scores[1]),
         "no positions": float(scores[2])},
        left_out="the paper's own formula, which we could not find, and its ablations",
    )  # fmt: skip
