"""Checks of rows about what heads share, and how they are weighed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.heads import expand_heads, gate_heads
from regard.layers.allocation import KeyDriven, MovingAllocation, allocated
from regard.layers.attention import Attention, joined, split
from regard.layers.building import model
from regard.layers.grouped_query import (
    AddedHeadEmbeddings,
    HeadEmbeddings,
    MultiQuery,
    pooled_heads,
)
from regard.layers.mixtures import AttentiveExperts, MixtureOfHeads, MixtureOfTrainedHeads
from regard.layers.registry import layer as layer_named
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit
from regard.run.doors import attend


def _equal_key_heads(plain: Attention) -> None:
    """Make all key heads of a layer the same, and all value heads."""
    with torch.no_grad():
        for map_ in (plain.to_k, plain.to_v):
            one = map_.weight.unflatten(0, (plain.kv_heads, -1))[:1]
            map_.weight.copy_(one.expand(plain.kv_heads, -1, -1).flatten(0, 1))


@check("mqa")
def one_key_head() -> Measured:
    """Repeating the one key head gives multi-head attention; equal heads convert; bytes are 1/h."""
    x = torch.randn(2, 17, 64)
    one, many = MultiQuery(64, heads=8, causal=True), Attention(64, heads=8, causal=True)
    state = one.state_dict()
    for name in ("to_k.weight", "to_v.weight"):
        state[name] = state[name].repeat(8, 1)
    many.load_state_dict(state)
    repeated = gap(one(x), many(x))

    _equal_key_heads(many)
    pooled = {
        name: pooled_heads(w, 8, 1) if name in ("to_k.weight", "to_v.weight") else w
        for name, w in many.state_dict().items()
    }
    one.load_state_dict(pooled)
    converted = gap(one(x), many(x))

    kept = []
    for layer in (one, many):
        memory = layer.memory()
        with torch.no_grad():
            layer(x, memory=memory)
        kept.append(memory.nbytes)
    single = MultiQuery(64, heads=1)
    whole = Attention(64, heads=1)
    whole.load_state_dict(single.state_dict())
    same = bool(torch.equal(single(x), whole(x)))
    return Measured(
        "keys and values repeated h times give multi-head attention; a model whose key heads are "
        "equal converts without loss; the memory is 1/h; one head is multi-head attention",
        max(repeated, converted) < 1e-6 and kept[0] * 8 == kept[1] and same,
        {"repeated": repeated, "converted": converted, "bytes": kept[0], "bytes mha": kept[1],
         "one head is the same": same},
    )  # fmt: skip


@check("mhe")
def head_embeddings() -> Measured:
    """Folded head embeddings equal heads written out, for few parameters."""
    x, h, d = torch.randn(2, 13, 64), 8, 8
    folded = HeadEmbeddings(64, heads=h)
    with torch.no_grad():
        for e in (folded.of_query, folded.of_key, folded.of_value):
            e.normal_()
    q, k, v = (split(m(x), 1) for m in (folded.to_q, folded.to_k, folded.to_v))
    heads = attend(q * (1 + folded.of_query), k * (1 + folded.of_key), v * (1 + folded.of_value))
    times = gap(folded.to_out(joined(heads)), folded(x))

    added = AddedHeadEmbeddings(64, heads=h)
    with torch.no_grad():
        added.of_query.normal_(), added.of_value.normal_()
    q, k, v = (split(m(x), 1) for m in (added.to_q, added.to_k, added.to_v))

    def heads_of(of_key: Tensor, of_value: Tensor) -> Tensor:
        return attend(q + added.of_query, k + of_key, v + of_value)

    zero = torch.zeros(h, 1, d)
    plus = gap(added.to_out(joined(heads_of(zero, added.of_value))), added(x))
    no_matter = gap(heads_of(torch.randn(h, 1, d), zero), heads_of(zero, zero))
    shift = torch.randn(h, 1, d)
    moved = gap(heads_of(zero, shift) - heads_of(zero, zero), shift.expand(2, h, 13, d))
    counts = {}
    for heads_ in (8, 16):
        layer = HeadEmbeddings(64, heads=heads_, head_dim=d)
        counts[heads_] = sum(p.numel() for p in layer.parameters()) - layer.to_out.weight.numel()
    counted = counts == {n: 3 * 64 * d + 3 * n * d for n in counts}
    return Measured(
        "one shared key and value, with embeddings folded into queries and outputs, equals heads "
        "written out; an embedding added to keys changes nothing, one added to values shifts a "
        "head by itself; parameters are 3 D d + 3 h d",
        max(times, plus, no_matter, moved) < 1e-5 and counted,
        {"times": times, "plus": plus, "added to keys": no_matter, "added to values": moved,
         "parameters at 8 heads": counts[8], "at 16": counts[16]},
    )  # fmt: skip


def _fallen(norms_of: Callable[[int], Tensor]) -> tuple[int, int]:
    """Count, of 3,000 cases, allocations that are wrong, and such that fall as a norm grows."""
    wrong = fallen = 0
    for _ in range(3000):
        g = int(torch.randint(1, 9, ()))
        h = g * int(torch.randint(1, 9, ()))
        norms = norms_of(g)
        before = allocated(norms - norms.min(), h)
        wrong += int(before.sum() != h) + int(bool((before < 0).any()))
        one = int(torch.randint(0, g, ()))
        norms[one] *= 10
        fallen += int(allocated(norms - norms.min(), h)[one] < before[one])
    return wrong, fallen


@check("kdgqa")
def driven_groups() -> Measured:
    """Allocations always sum to the heads, and a larger norm does not lower one's own."""
    wrong, fallen = _fallen(lambda g: torch.randn(g, 64).norm(dim=1))
    # Norms over four decades: where rounding leaves too few heads, the least group gets one more,
    # and loses it again when it is not the least. No text has such keys.
    wrong_wide, fallen_wide = _fallen(
        lambda g: torch.rand(g) * 10 ** torch.empty(g).uniform_(-2, 2)
    )
    even = torch.ones(4)
    guarded = allocated(even - even.min(), 8).tolist() == [2] * 4
    average = MovingAllocation(32, heads=8, kv_heads=4, window=1)
    average.train().allocate(torch.ones(1, 4, 5, 4))
    uniform = average.allocation.tolist() == [2] * 4
    # Frozen, a text's answer does not depend on what else is in the batch.
    layer, x = KeyDriven(32, heads=8, kv_heads=4), torch.randn(3, 9, 32)
    layer(x)
    frozen = gap(layer.eval()(x)[:1], layer(x[:1]))
    return Measured(
        "allocations are not negative and sum to h for any norms; ten times a norm does not lower "
        "its allocation (norms of random keys, 3,000 cases; over four decades of norms it can, in "
        "0.3% of cases); equal norms share evenly; a frozen layer's rows do not meet",
        wrong + wrong_wide == 0 and fallen == 0 and guarded and uniform and frozen < 1e-6,
        {"wrong of 6000": wrong + wrong_wide, "fallen of 3000": fallen,
         "fallen of 3000, four decades": fallen_wide, "equal norms, kdgqa": guarded,
         "equal norms, ema": uniform, "frozen": frozen},
    )  # fmt: skip


def _load_imbalance(beta: float) -> float:
    """Coefficient of variation of the heads' load, after training a router alone."""
    torch.manual_seed(0)
    layer = MixtureOfHeads(32, heads=16, active=6, shared=2)
    # A task that wants a few heads: tokens share a direction, and gates are paid along it.
    direction, pay = torch.randn(32), torch.randn(14)

    def tokens(count: int) -> Tensor:
        return direction + torch.randn(1, count, 32)

    def loss() -> Tensor:
        x = tokens(256)
        paid = layer.gates(x)[:, 2:].transpose(1, 2) @ pay
        return -0.01 * paid.mean() + beta * layer.balance_loss(x)

    fit(layer.to_routed.parameters(), loss, 300, 1e-2)
    best = layer.to_routed(tokens(4096)).topk(4, dim=-1).indices
    load = torch.bincount(best.flatten(), minlength=14).float()
    return float(load.std(correction=0) / load.mean())


@check("moh")
def mixture_of_heads() -> Measured:
    """All gates at 1 give multi-head attention; active heads are counted; balance balances."""
    x = torch.randn(2, 20, 64)
    plain = Attention(64, heads=8, causal=True)
    trained = MixtureOfTrainedHeads(64, heads=8, active=8, shared=2, causal=True)
    trained.load_state_dict(plain.state_dict())
    equal = gap(trained(x), plain(x))
    layer = MixtureOfHeads(64, heads=8, active=6, shared=2)
    active = (layer.gates(x) > 0).sum(1)
    exact = bool((active == 6).all())
    # A router without opinion gives each of all heads a gate of 1.
    even = MixtureOfHeads(64, heads=8, active=8, shared=2)
    with torch.no_grad():
        for p in (even.to_routed, even.to_shared, even.to_shares):
            p.weight.zero_()
    ones = gap(even.gates(x), torch.ones(2, 8, 20))
    free, balanced = _load_imbalance(0.0), _load_imbalance(1.0)
    return Measured(
        "with every head active and every gate 1 the layer is multi-head attention; exactly h_s + "
        "K heads are active; the balance loss at weight 1 cuts the load's coefficient of "
        "variation to a third or less",
        max(equal, ones) < 1e-6 and exact and balanced < free / 3,
        {"equal": equal, "gates of a router without opinion": ones, "active heads": 6,
         "imbalance": free, "imbalance, balanced": balanced},
    )  # fmt: skip


@check("mae_attentive_experts")
def attentive_experts() -> Measured:
    """Even gates are multi-head attention, a sure gate leaves one head out, gates tell tasks."""
    h, x = 8, torch.randn(2, 15, 64)
    layer, plain = AttentiveExperts(64, heads=h), Attention(64, heads=h)
    plain.load_state_dict(layer.state_dict(), strict=False)
    last = layer.to_gate[2]
    with torch.no_grad():
        last.weight.zero_(), last.bias.zero_()
        even = gap(layer(x), plain(x))
        last.bias[3] = 200.0
        without = plain.to_out.weight.clone().unflatten(1, (h, -1))
        without[:, 3] = 0
        seen = attend(plain.queries(x), *plain.keys(x))
        one_out = gap(layer(x), joined(seen) @ without.flatten(1).T * h / (h - 1))
    layer.draws_experts = True
    layer(x).sum().backward()
    own = layer.to_q.weight.grad.unflatten(0, (h, -1)).abs().amax((1, 2))
    idle, busy = float(own[3]), float(own[torch.arange(h) != 3].min())

    # The gate's turn: experts are frozen, and each of two tasks, told apart by its first token,
    # is best without another head.
    torch.manual_seed(1)
    layer = AttentiveExperts(32, heads=4)
    marks = torch.randn(2, 32)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        task = torch.randint(0, 2, (size,))
        return torch.cat((marks[task][:, None], torch.randn(size, 8, 32)), 1), task

    def loss() -> Tensor:
        x, task = batch(32)
        seen = attend(layer.queries(x), *layer.keys(x))
        best = gate_heads(seen, (1 - F.one_hot(task, 4)) * 4 / 3)
        return F.mse_loss(layer(x), layer.to_out(joined(best)))

    fit(layer.gate_parameters(), loss, 200)
    x, task = batch(512)
    gates = layer.to_gate(x.mean(1)).softmax(-1)
    best = min(_auc(gates[:, i], task) for i in range(2))
    return Measured(
        "an even gate is multi-head attention; a sure gate for expert i removes head i and scales "
        "the others by h / (h - 1); a drawn expert sends head i no gradient; a gate trained on two "
        "tasks, experts frozen, tells them apart with AUC over 0.9",
        even < 1e-6 and one_out < 1e-5 and idle == 0 and busy > 0 and best > 0.9,
        {"even": even, "one left out": one_out, "idle gradient": idle, "least busy": busy,
         "AUC of the gates": best},
    )  # fmt: skip


def _auc(score: Tensor, label: Tensor) -> float:
    """Share of pairs that a score ranks right, whichever way round."""
    wins = (score[label == 1][:, None] > score[label == 0]).float().mean()
    return float(max(wins, 1 - wins))


@check("fixed_head_size", long=True)
def wide_heads() -> Measured:
    """Heads at least as wide as the text can write any attention; narrow ones cannot."""
    n, dim = 16, 32
    x = torch.randn(n, dim, dtype=torch.float64)
    wanted = torch.rand(n, n, dtype=torch.float64).add(0.05)
    wanted = wanted / wanted.sum(1, keepdim=True)
    # softmax(X Q K^T X^T / sqrt(d)) = P for Q = pinv(X) log P sqrt(d), K = pinv(X).
    inverse = torch.linalg.pinv(x)
    q = x @ (inverse @ wanted.log() * n**0.5)
    k = x @ inverse
    made = attend(q[None, None], k[None, None], torch.eye(n).double()[None, None])[0, 0]
    wide = gap(made, wanted)

    torch.manual_seed(0)
    fitted = {}
    for d in (4, 16):
        to_q, to_k = ((0.3 * torch.randn(dim, d)).double().requires_grad_() for _ in range(2))

        def divergence(a: Tensor = to_q, b: Tensor = to_k, d: int = d) -> Tensor:
            scores = (x @ a) @ (x @ b).T / d**0.5
            return F.kl_div(scores.log_softmax(-1), wanted, reduction="batchmean")

        fitted[d] = fit([to_q, to_k], divergence, 1500, 3e-2)[-1]
    x = torch.randn(2, 9, 64)
    same, plain = Attention(64, heads=8, head_dim=8), Attention(64, heads=8)
    same.load_state_dict(plain.state_dict())
    return Measured(
        "with head size n a pair of maps writes any positive row-stochastic P to 1e-5; fitted "
        "heads of size 4 stay at least ten times further (KL) from it than heads of size 16; head "
        "size D / h is the standard layer",
        wide < 1e-5 and fitted[4] > 10 * fitted[16] and torch.equal(same(x), plain(x)),
        {"constructed": wide, "KL at 4": fitted[4], "KL at 16": fitted[16]},
        left_out="the sweep of trained models over numbers of heads",
    )


def _grouped(x: Tensor, layer: Attention) -> Tensor:
    k, v = (expand_heads(t, layer.heads) for t in layer.keys(x))
    return joined(F.scaled_dot_product_attention(layer.queries(x), k, v, is_causal=True))


@check("cross_layer_attention")
def keys_across_layers() -> Measured:
    """Sharers read the owner's keys; counted memory; decoding; s = 1 is the base model."""
    tokens = torch.randint(0, 50, (2, 21))
    sizes = {"dim": 64, "heads": 8, "kv_heads": 2, "vocab": 50, "position": "rotary"}
    torch.manual_seed(0)
    shared = model(["cross_layer_attention"] * 5, sources=[0, 0, 2, 2, 4], **sizes).eval()
    torch.manual_seed(0)
    alone = model(["cross_layer_attention"] * 5, **sizes).eval()
    torch.manual_seed(0)
    base = model(["gqa"] * 5, **sizes).eval()
    same = bool(torch.equal(alone(tokens), base(tokens)))

    memory = shared.memory()
    with torch.no_grad():
        steps = [shared(tokens[:, i : i + 1], memory=memory) for i in range(21)]
        decoded = gap(torch.cat(steps, 1), shared(tokens))
    held = sum(memory.get(f"{i}").get("mixer").get("keys") is not None for i in range(5))

    owner, sharer = (block.mixer for block in list(shared.stack.blocks)[:2])
    x, between = torch.randn(2, 2, 9, 64), {}
    owner(x[0], between=between)
    k, v = between["keys"].k, between["keys"].v
    q = sharer.position.turn(sharer.queries(x[1]), torch.arange(9))
    k, v = expand_heads(k, 8), expand_heads(v, 8)
    explicit = sharer.to_out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
    read = gap(sharer(x[1], between=between), explicit)
    losses = {name: _language(**s) for name, s in _AT_EQUAL_BYTES.items()}
    return Measured(
        "s = 1 is the base model; ceil(L / s) pairs of keys and values are kept; a sharer attends "
        "to the owner's; decoding equals the whole; at equal memory, sharing in pairs with twice "
        "the head size is not worse than multi-query attention (0.02 nats) on a tiny model",
        same and held == 3 and max(read, decoded) < 1e-5
        and losses["shared in pairs"] < losses["multi-query"] + 0.02,
        {"base": same, "pairs kept of 5 layers": held, "explicit": read, "decoded": decoded,
         "loss, multi-query": losses["multi-query"], "loss, shared": losses["shared in pairs"]},
    )  # fmt: skip


_AT_EQUAL_BYTES = {
    "multi-query": {"head_dim": 8, "kv_heads": 1},
    "shared in pairs": {"head_dim": 16, "kv_heads": 1, "sources": [0, 0, 2, 2]},
}


def _language(steps: int = 150, **settings: object) -> float:
    """Loss of a tiny language model on repeated words, the mean of its last steps."""
    torch.manual_seed(0)
    words = torch.randint(0, 32, (24, 4))
    tiny = model(
        ["cross_layer_attention"] * 4, dim=32, heads=4, vocab=32, position="rotary", **settings
    )

    def loss() -> Tensor:
        tokens = words[torch.randint(0, 24, (32, 10))].flatten(1)
        return F.cross_entropy(tiny(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    losses = fit(tiny.parameters(), loss, steps)
    return sum(losses[-20:]) / 20


@check("mlkv")
def key_heads_across_layers() -> Measured:
    """Layers own key heads for others: the ends are known models; equal weights convert."""
    tokens, x = torch.randint(0, 50, (2, 15)), torch.randn(2, 15, 64)
    sizes = {"dim": 64, "heads": 8, "vocab": 50}

    def made(m: int, g: int) -> torch.nn.Module:
        torch.manual_seed(0)
        size = 4 // m
        return model(["mlkv"] * 4, kv_heads=g, sources=[i - i % size for i in range(4)], **sizes)

    torch.manual_seed(0)
    mha = model(["mha"] * 4, **sizes)
    torch.manual_seed(0)
    mqa = model(["mqa"] * 4, **sizes)
    ends = max(gap(made(4, 8)(tokens), mha(tokens)), gap(made(4, 1)(tokens), mqa(tokens)))

    kept = {}
    for m, g in ((4, 8), (2, 8), (2, 1), (1, 1)):
        one = made(m, g)
        memory = one.memory()
        with torch.no_grad():
            one(tokens, memory=memory)
        heads = [memory.get(f"{i}").get("mixer").get("keys") for i in range(4)]
        kept[f"{m} x {g}"] = sum(k.read().k.shape[1] for k in heads if k is not None)
    counted = all(kept[f"{m} x {g}"] == m * g for m, g in ((4, 8), (2, 8), (2, 1), (1, 1)))

    # Layers of a group whose keys and values are the same in every head convert without loss.
    first, second = Attention(64, heads=8, causal=True), Attention(64, heads=8, causal=True)
    _equal_key_heads(first)
    second.to_k, second.to_v = first.to_k, first.to_v
    owner = layer_named("mlkv", 64, heads=8, kv_heads=2, causal=True)
    reader = layer_named("mlkv", 64, heads=8, kv_heads=2, causal=True, owns_keys=False)
    for layer, plain in ((owner, first), (reader, second)):
        state = plain.state_dict()
        state |= {n: pooled_heads(state[n], 8, 2) for n in ("to_k.weight", "to_v.weight")}
        layer.load_state_dict({n: state[n] for n in layer.state_dict()})
    between: dict[str, object] = {}
    lossless = max(
        gap(owner(x, between=between), first(x)), gap(reader(x, between=between), second(x))
    )
    sources = {4: None, 2: [0, 0, 2, 2], 1: [0, 0, 0, 0]}
    losses = {m: _language(kv_heads=1, sources=s) for m, s in sources.items()}
    rises = losses[4] <= losses[2] + 0.02 <= losses[1] + 0.04
    return Measured(
        "m = L with all heads is multi-head, with one head multi-query attention; m g key heads "
        "are kept; equal keys and values convert without loss; the loss of a tiny model does not "
        "fall as m falls (within 0.02 nats a step)",
        ends < 1e-6 and counted and lossless < 1e-5 and rises,
        {"ends": ends, "lossless": lossless, **{f"heads kept, {k}": v for k, v in kept.items()},
         **{f"loss at m = {m}": loss for m, loss in losses.items()}},
    )  # fmt: skip
