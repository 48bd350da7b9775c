"""Checks of rows whose policies search or learn first: spans, gates, groups of layers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from regard.conversions.head_sharing import apart, chosen_matches, post_share, share_heads
from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.result import Result
from regard.core.rule import Rule
from regard.core.support import Causal, Tiles
from regard.models.attach import attach
from regard.models.rotary import Turn
from regard.models.site import Site
from regard.models.stage import Stage
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.policies_evicting import llama
from regard.papers.seeding import restart
from regard.policies.distant import PoD, alike, grouped
from regard.policies.gates import Gate, best_tiles, distance, mass_found, pooled, tile_targets
from regard.policies.moa import MoASparse, span
from regard.policies.profiling import Effects, masking_effect
from regard.policies.shrinking import Shrinking
from regard.run.api import attend
from regard.run.reference import score_matrix, weight_matrix
from regard.run.survey import survey
from regard.verbs import shrink

CAUSAL = Rule(Causal())


def masked_one_by_one(loss: object, a: Tensor) -> Tensor:
    """Rise of a loss of weights [n, m] when each entry is masked and its row weighed anew."""
    assert callable(loss)
    found = torch.zeros_like(a)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            b = a.clone()
            b[i, j] = 0
            b[i] /= b[i].sum()
            found[i, j] = loss(b) - loss(a)
    return found


def effects_of(call: Call, goal: Tensor, size: int) -> Tensor:
    """Effects by distance [h, d] on a loss that falls with out . goal."""
    effects = Effects(call, -goal, size)
    survey(call.q, call.k, call.v, call.rule, want=(), reducers=[effects])
    return effects.found[0]


@check("moa_sparse")
def moa() -> Measured:
    """Effects are exact where the loss is linear, streamed as told; the far head gets the span."""
    a = torch.softmax(2 * torch.randn(12, 12, dtype=torch.double), -1)
    v, goal = torch.randn(12, 4, dtype=torch.double), torch.randn(12, 4, dtype=torch.double)

    def linear(x: Tensor) -> Tensor:
        return (x @ v * goal).sum()

    def bent(x: Tensor) -> Tensor:
        return torch.tanh(x @ v).sub(goal).square().sum()

    def told(loss: object) -> Tensor:
        assert callable(loss)
        x = a.clone().requires_grad_(True)
        (pull,) = torch.autograd.grad(loss(x), x)
        return masking_effect(a, pull, (a * pull).sum(-1, keepdim=True))

    exact = float((told(linear) - masked_one_by_one(linear, a)).abs().max())
    found, true = told(bent), masked_one_by_one(bent, a)
    small = a < 0.1
    near = float(torch.corrcoef(torch.stack((found[small], true[small])))[0, 1])
    every = float(torch.corrcoef(torch.stack((found.flatten(), true.flatten())))[0, 1])

    # One head looks 400 tokens back, three fade over 20 tokens.
    n, block = 512, 32
    q, k = torch.zeros(1, 4, n, 64), torch.zeros(1, 4, n, 64)
    walk = torch.randn(n, 64)
    k[:, 0] = walk
    q[:, 0, 400:] = 4 * walk[: n - 400]
    q[:, 1:, :, 0], k[:, 1:, :, 0] = 8.0, torch.arange(n) / 20
    call = Call.of(q.double(), k.double(), torch.randn(1, 4, n, 16).double(), CAUSAL)
    goal_ = attend(call.q, call.k, call.v, CAUSAL).clone()
    goal_[:, 0, :400] = 0  # before that the far head sees nothing it looks for
    streamed = effects_of(call, goal_, block)
    weights = weight_matrix(call)[0]
    pull = -goal_ @ call.v.transpose(2, 3)
    whole = masking_effect(weights, pull, (weights * pull).sum(-1, keepdim=True))
    apart = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0) // block
    dense = torch.stack([whole[0, :, apart == x].sum(1) for x in range(n // block)], 1)
    off = float((streamed - dense).abs().max() / dense.abs().max())
    policy = MoASparse(sinks=0, block=block, alphas=(0, 64, 128, 256))
    policy.take({"plans": {}, "profile": {n: {0: streamed}}})
    spans = [span(x, n, policy.block) for x in policy.planned(0.35)[0][0]]
    return Measured(
        "masking one entry and weighing its row anew changes a linear loss by E_ij exactly "
        "(1e-9), and a bent one nearly where A < 0.1 (correlation over 0.9); the streamed pass "
        "gives the sums over the matrix (1e-4); of four heads at a budget of 35%, the one that "
        "looks 400 tokens back gets a span over 400, the others at most 128",
        exact < 1e-9 and near > 0.9 and off < 1e-4 and spans[0] > 400 and max(spans[1:]) <= 128,
        {"linear": exact, "correlation, A < 0.1": near, "correlation, all": every,
         "streamed": off, "spans": str(spans)},
        left_out="LongBench-like quality at scale, and times; at most two rules in a layer; on "
        "the model that ships it does not beat one window for all (see docs/shrink.md)",
    )  # fmt: skip


def hot_keys(n: int = 256, block: int = 16, d: int = 16) -> Call:
    """Two heads whose blocks of keys hide a loud key each, of eight kinds that queries ask for."""
    t = n // block
    kinds = torch.eye(d)[:8]
    k = 0.6 * torch.randn(1, 2, n, d)
    spot = torch.arange(t) * block + torch.randint(block, (2, t))
    for head in range(2):
        k[0, head, spot[head]] += 3 * kinds[torch.randint(8, (t,))]
    asked = kinds[torch.randint(8, (2, t))].repeat_interleave(block, 1)
    q = 6 * asked[None] + torch.randn(1, 2, n, d)
    return Call.of(q, k, torch.randn(1, 2, n, d), CAUSAL)


def best_of(scores: Tensor, count: int) -> Tensor:
    """Choose the highest in each row."""
    return scores.argsort(dim=-1, descending=True).argsort(dim=-1) < count


@check("seer_attention")
def seer() -> Measured:
    """A gate learns where loud keys are, as means cannot; its target is the pooled map."""
    block, count = 16, 4
    first = hot_keys()
    weights = weight_matrix(first)[0]
    tiles = weights.unflatten(3, (-1, block)).unflatten(2, (-1, block)).amax((3, 5))
    off = float((tile_targets(first, block) - tiles / tiles.sum(-1, keepdim=True)).abs().max())
    dense = attend(first.q, first.k, first.v, CAUSAL)
    every = torch.ones_like(tiles, dtype=torch.bool)
    whole = attend(first.q, first.k, first.v, Rule(Causal() & Tiles(every, block)))

    gate = Gate.of(Site(0, "self", "x", 2, 2, 16, causal=True), 16)
    maps = [gate.q.requires_grad_(True), gate.k.requires_grad_(True)]
    optimizer = torch.optim.AdamW(maps, lr=0.02, weight_decay=0.0)
    losses = []
    for _ in range(120):
        call = hot_keys()
        loss = distance(tile_targets(call, block), gate.scores(call.q, call.k, 0, block, Turn()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    found = []
    for _ in range(4):
        call = hot_keys()
        with torch.no_grad():
            said = gate.scores(call.q, call.k, 0, block, Turn())
        means = pooled(call.q, block, 0, "mean") @ pooled(call.k, block, 0, "mean").mT
        rows = torch.arange(means.shape[2])
        means = means.masked_fill(rows > rows[:, None], -torch.inf)
        found.append([
            mass_found(call, x, block)
            for x in (best_of(said, count), best_of(means, count), best_tiles(call, block, count))
        ])  # fmt: skip
    learned, mean, oracle = torch.tensor(found).mean(0).tolist()
    return Measured(
        "the target from the survey is the max-pooled map (1e-5), and all tiles are dense "
        "attention; on new draws the 4 tiles a row that a gate takes after 120 steps hold over "
        "half of what means of blocks miss of the best 4",
        off < 1e-5 and float((whole - dense).abs().max()) < 1e-5
        and oracle - learned < 0.5 * (oracle - mean),
        {"target": off, "of weight, gate": learned, "of weight, means": mean,
         "of weight, best": oracle, "loss, first": losses[0], "loss, last": losses[-1]},
        left_out="fine-tuning with YaRN at 32K, and kernels",
    )  # fmt: skip


class Passing(Stage):
    """Holds the calls and the outputs of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, Call] = {}
        self.outs: dict[int, Tensor] = {}

    def before(self, call: Call) -> Call:
        """Hold the call."""
        self.calls[call.site.layer] = call
        return call

    def after(self, call: Call, partial: Result) -> Result:
        """Hold the output."""
        self.outs[call.site.layer] = partial.out
        return partial


def shared_by_hand(own: Call, first: Call, sinks: int, window: int) -> Tensor:
    """One softmax over a layer's own near scores and another layer's distant ones."""
    near, allowed = score_matrix(own)
    far = score_matrix(first)[0]
    i, j = torch.arange(own.n)[:, None], torch.arange(own.m)
    close = (i - j < window) | (j < sinks)
    scores = torch.where(close, near, far).masked_fill(~allowed, -torch.inf)
    return torch.softmax(scores, -1) @ expand_heads(own.v, own.h)


@check("pod_proximal_distant")
@torch.no_grad()
def pod() -> Measured:
    """Shared distant scores are one softmax; copied layers are grouped, and share without error."""
    sinks, window, n = 4, 32, 200
    ids = torch.randint(3, 60, (1, n))
    model = llama(4)
    # `llama` says Module, whose parts the type checker takes for tensors.
    inner: torch.nn.ModuleList = model.model.layers  # type: ignore[assignment, union-attr]
    for layer in inner:
        layer.self_attn.q_proj.weight *= 8  # layers of sharp weights look at different keys

    def made(sources: dict[int, int]) -> PoD:
        one = PoD(sinks=sinks, window=window)
        one.take({"sources": sources})
        return one

    look, bare = Passing(), Passing()
    with attach(model, [bare], check=False):
        plain = model(ids).logits
    with attach(model, [look, Shrinking([made({1: 0})], 0.5)], check=False):
        model(ids)
    wanted = shared_by_hand(bare.calls[1], bare.calls[0], sinks, window)
    merged = gap(look.outs[1], wanted)
    with shrink(model, made({1: 0, 3: 2}), keep=0.5, check=False) as shrunk:
        short = gap(model(ids[:, : sinks + window]).logits, plain[:, : sinks + window])
        model(ids)
        held = [x.memory.nbytes for x in shrunk.stage.layers]
    token = 2 * 16 * 4  # two key heads of 16 channels, four bytes each
    counted = [2 * n * token, (n + sinks + window) * token + 4 * (sinks + window)] * 2

    # Layer 1 is made a copy of layer 0, which adds nothing to the stream: they see the same.
    inner[1].self_attn.load_state_dict(inner[0].self_attn.state_dict())
    inner[1].input_layernorm.load_state_dict(inner[0].input_layernorm.state_dict())
    for x in (inner[0].self_attn.o_proj, inner[0].mlp.down_proj):
        x.weight.zero_()
    with attach(model, [bare], check=False):
        plain = model(ids).logits
    with shrink(model, made({1: 0}), keep=0.5, check=False):
        twin = gap(model(ids).logits, plain)
    rows = torch.stack([weight_matrix(bare.calls[x])[0][0, :, -8:, :160] for x in range(4)])
    likeness = alike((rows / rows.sum(-1, keepdim=True)).double())
    groups = grouped((likeness > 0.9).float().mean(-1), 0.5)
    return Measured(
        "a layer's near and its group's distant scores give one softmax (1e-5 against the matrix); "
        "a context that is all near is untouched (1e-5); a copied layer is grouped with its twin, "
        "and no other, and shares without error (1e-4); bytes held are those of leaders T + others "
        "(s + w) keys, all values, and the positions of the ring",
        merged < 1e-5 and short < 1e-5 and twin < 1e-4 and groups == {1: 0} and held == counted,
        {"against the matrix": merged, "all near": short, "twins": twin, "groups": str(groups),
         "least like": float(likeness[0].mean(-1).min()),
         "bytes": str(held), "counted": str(counted)},
        left_out="training that adapts the model, needle tests at scale, and the 35% saved there",
    )  # fmt: skip


@check("direct_share_post_share")
def shared_heads() -> Measured:
    """A planted twin is matched first and shared without loss; parameters are what a table says."""
    import copy

    ids = torch.randint(3, 60, (2, 24))
    model = llama(4)
    # `llama` says Module, whose parts the type checker takes for tensors.
    inner: torch.nn.ModuleList = model.model.layers  # type: ignore[assignment, union-attr]
    with torch.no_grad():
        for name, size in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
            a, b = (getattr(inner[x].self_attn, name).weight for x in (3, 1))
            a[:size] = b[size : 2 * size]  # key head 0 of layer 3 is key head 1 of layer 1
        plain = model(ids).logits
        none, one = copy.deepcopy(model), copy.deepcopy(model)
        share_heads(none, 0.0)
        (first,) = share_heads(one, 1 / 8)
        same, lossless = gap(none(ids).logits, plain), gap(one(ids).logits, plain)
        three = copy.deepcopy(model)
        taken = share_heads(three, 3 / 8)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in three.parameters())
    table = len(taken) * (32 + 16 + 16) * 64

    # A small model that has learned to go on counting.
    restart()
    small = llama(3, seed=1)

    def rows() -> Tensor:
        start, pace = torch.randint(48, (16, 1)), torch.randint(1, 5, (16, 1))
        return 3 + (start + pace * torch.arange(24)) % 48

    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3)
    for _ in range(150):
        loss = small(x := rows(), labels=x, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    told, shown = [rows() for _ in range(8)], [rows() for _ in range(8)]

    def loss_of(tried: torch.nn.Module) -> float:
        with torch.no_grad():
            return sum(float(tried(x, labels=x).loss) for x in told) / len(told)

    direct, post = copy.deepcopy(small), copy.deepcopy(small)
    pairs = chosen_matches(small, 0.3)
    share_heads(direct, 0.3, pairs)
    far: list[float] = [float(apart(post, pairs).detach())]
    post_share(post, 0.3, shown, steps=80, rate=2e-3, progress=lambda _, x: far.append(x))
    before, after, trained = loss_of(small), loss_of(direct), loss_of(post)
    smoothed = [sum(far[i : i + 10]) / 10 for i in range(1, len(far) - 9, 10)]
    falls = all(a > b for a, b in itertools.pairwise(smoothed))
    return Measured(
        "at ratio 0 nothing changes; planted twins are matched first, and sharing them changes "
        "nothing (1e-5); parameters saved are those of the table; PostShare brings matched heads "
        "nearer, ten steps by ten, and at 30% of the heads its loss is below DirectShare's",
        same == 0 and lossless < 1e-5 and first[:4] == (3, 0, 1, 1) and count == table
        and falls and trained < after,
        {"ratio 0": same, "twins": lossless, "first match": str(first[:4]), "saved": count,
         "by the table": table, "distance": f"{far[0]:.3f} to {far[-1]:.3f}",
         "loss, whole": before, "loss, DirectShare": after, "loss, PostShare": trained},
        left_out="large models; PostShare trains every weight on the texts it is shown, so part of "
        "its gain is that training",
    )  # fmt: skip
