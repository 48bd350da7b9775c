"""Checks of rows about votes, relations, gates and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.attention import Attention, joined
from regard.layers.attention_free import (
    AttentionFree,
    ConvolvedAttentionFree,
    LocalAttentionFree,
    SimpleAttentionFree,
)
from regard.layers.building import model
from regard.layers.dynamic_convolution import SpanConvolution
from regard.layers.gate_networks import GaussianGate, MixerGate
from regard.layers.registry import layer as layer_named
from regard.layers.relational import DualAttention, RelationalAttention
from regard.layers.selective import SelectiveAttention
from regard.layers.stack import Block
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.recurrent import decode_bytes, scene_of
from regard.papers.checks.training import fit


@check("selective_attention")
def selective() -> Measured:
    """No votes is ordinary attention; votes only grow; a pruned memory is enough."""
    x = torch.randn(2, 30, 32)
    plain, layer = Attention(32, heads=4, causal=True), SelectiveAttention(32, heads=4)
    layer.load_state_dict(plain.state_dict())
    with torch.no_grad():
        layer.to_q.weight[:8] = plain.to_q.weight[:8] = 0
    silent = gap(layer(x), plain(x))
    layer = SelectiveAttention(32, heads=4)
    cast = layer.votes(layer.call(scene_of(x)))
    grows = bool((cast >= 0).all())
    exempt = float(
        torch.cat((cast[..., 0].flatten(), cast.diagonal(0, 1, 2).flatten())).detach().max()
    )
    memory = layer.memory()
    with torch.no_grad():
        steps = torch.cat([layer(x[:, i : i + 1], memory=memory) for i in range(30)], 1)
    decoded = gap(steps, layer(x))
    whole, pruned = _assignments("selective_attention", prune=True)
    other, other_pruned = _assignments("mha", prune=True)
    return Measured(
        "first-head scores of zero leave attention as it is; votes are never negative, so what is "
        "masked stays masked, and spare the first token and oneself; decoding is the whole; on "
        "assignments of which only the last counts, keeping as many keys as there are variables "
        "(those with the fewest votes) costs the selective model less than it costs the plain one "
        "to keep the most recent",
        silent < 1e-6 and grows and exempt == 0 and decoded < 1e-5 and whole > 0.9
        and whole - pruned < other - other_pruned,
        {"silent": silent, "votes on the exempt": exempt, "decoded": decoded, "accuracy": whole,
         "accuracy, pruned": pruned, "plain accuracy": other, "plain, pruned": other_pruned},
    )  # fmt: skip


VARIABLES = 4


def _assignments(name: str, prune: bool) -> tuple[float, float]:
    """Accuracy of reading the last value of a variable, and with a memory cut to a few keys.

    A text is a first token, assignments (one token for each variable and value), and a question
    (one token for each variable). Keys are cut in both layers, by fewest votes where there are any.
    """
    torch.manual_seed(0)
    values, count = 4, 12
    vocab = 1 + VARIABLES * values + VARIABLES
    tiny = model([name] * 2, dim=48, heads=4, vocab=vocab, position="rotary", tied=False)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(0, VARIABLES, (rows, count))
        which[:, :VARIABLES] = torch.arange(VARIABLES)
        what = torch.randint(0, values, (rows, count))
        asked = torch.randint(0, VARIABLES, (rows, 1))
        place = torch.where(which == asked, torch.arange(count), -1).amax(1, keepdim=True)
        told = 1 + which * values + what
        tokens = torch.cat((torch.zeros_like(asked), told, 1 + VARIABLES * values + asked), 1)
        return tokens, told.gather(1, place)[:, 0]

    def loss() -> Tensor:
        tokens, wanted = batch(64)
        return F.cross_entropy(tiny(tokens)[:, -1], wanted)

    fit(tiny.parameters(), loss, 500, 4e-3)
    tokens, wanted = batch(512)
    with torch.no_grad():
        right = (tiny(tokens)[:, -1].argmax(-1) == wanted).float().mean()
        memory = tiny.memory()
        tiny(tokens[:, :-1], memory=memory)
        if prune:
            for i in range(2):
                own = memory.get(f"{i}").get("mixer")
                kept, votes = own.get("keys"), own.get("votes")
                if votes is None:
                    votes = -torch.arange(count + 1.0).expand(512, -1)
                _keep_best(kept, votes, VARIABLES + 1)
        cut = (tiny(tokens[:, -1:], memory=memory)[:, -1].argmax(-1) == wanted).float().mean()
    return float(right), float(cut)


def _keep_best(kept: object, votes: Tensor, count: int) -> None:
    """Make all but the `count` keys with the fewest votes empty slots (the first token stays)."""
    read = kept.read()  # type: ignore[attr-defined]
    votes = votes.clone()
    votes[:, 0] = -torch.inf
    best = votes.topk(count, dim=1, largest=False).indices
    places = torch.arange(read.k.shape[2]).expand(len(votes), -1)
    kept._positions = torch.full_like(places, -1).scatter(1, best, places.gather(1, best))  # type: ignore[attr-defined]


@check("dual_attention")
def dual() -> Measured:
    """No relational head is multi-head attention; relations survive rotations; unseen pairs."""
    x = torch.randn(2, 11, 32)
    plain, none = Attention(32, heads=4), DualAttention(32, heads=4, relational=0)
    none.sensory.load_state_dict(plain.state_dict())
    same = bool(torch.equal(none(x), plain(x)))
    layer = RelationalAttention(32, heads=2, relations=3, symmetric=True)
    with torch.no_grad():
        layer.of_symbols.zero_()
        before = layer(x)
        turn = torch.linalg.qr(torch.randn(3, layer.width, layer.width)).Q
        maps = layer.to_relation.weight.view(3, layer.width, 32)
        maps.copy_(turn @ maps)
    turned = gap(layer(x), before)
    alpha = torch.rand(11, 11).softmax(-1)
    _, told = layer.keys(x)
    own = layer.to_relation(x).unflatten(-1, (3, -1))
    pairs = torch.einsum("bilp,bjlp->bijl", own, own)
    direct = torch.einsum("ij,bijl->bil", alpha, pairs)
    averaged = torch.einsum("ij,bje->bie", alpha, told[:, 0, :, : 3 * layer.width])
    short = gap((own * averaged.unflatten(-1, (3, -1))).sum(-1), direct)
    found = {name: _same_or_not(name) for name in ("dual_attention", "mha")}
    return Measured(
        "without relational heads the layer is multi-head attention bit for bit; symmetric "
        "relations do not change when their space is turned; averaging first equals averaging "
        "relations; whether two unseen objects are the same is told with over 90%, and better "
        "than by the matched multi-head model",
        same and turned < 1e-5 and short < 1e-4
        and found["dual_attention"] > 0.9 and found["dual_attention"] > found["mha"] + 0.05,
        {"bit for bit": same, "turned": turned, "averaged first": short,
         **{f"accuracy, {name}": a for name, a in found.items()}},
    )  # fmt: skip


def _same_or_not(name: str) -> float:
    """Accuracy on pairs of objects not seen in training, of a block that saw 64 objects."""
    torch.manual_seed(0)
    objects = F.normalize(torch.randn(564, 32), dim=-1) * 32**0.5
    given = (
        {"relational": 4, "relations": 4, "width": 32, "symmetric": True} if name != "mha" else {}
    )
    block = Block(layer_named(name, 32, heads=4, **given))
    last = nn.Linear(32, 2)

    def batch(rows: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        pair = torch.randint(start, stop, (rows, 2))
        alike = torch.rand(rows) < 0.5
        pair[alike, 1] = pair[alike, 0]
        return objects[pair], (pair[:, 0] == pair[:, 1]).long()

    def loss() -> Tensor:
        x, wanted = batch(64, 0, 64)
        return F.cross_entropy(last(block(x).mean(1)), wanted)

    fit([*block.parameters(), *last.parameters()], loss, 400, 3e-3)
    x, wanted = batch(2000, 64, 564)
    return float((last(block(x).mean(1)).argmax(-1) == wanted).float().mean())


@check("gaam")
def gaussian_gate() -> Measured:
    """Gates sum to one, ignore shift and scale, and find a planted band of features."""
    layer, x = GaussianGate(32, heads=4, gaussians=3), torch.randn(2, 9, 32)
    sums = gap(layer.gate(x).sum(-1), torch.ones(2, 9, 4))
    moved = max(gap(layer.gate(x + 5), layer.gate(x)), gap(layer.gate(3 * x), layer.gate(x)))
    wide = GaussianGate(32, heads=1, gaussians=1)
    with torch.no_grad():
        wide.spreads.fill_(1e4)
    uniform = gap(wide.gate(x), torch.full((2, 9, 1, 32), 1 / 32))
    count = sum(p.numel() for p in layer.parameters())

    torch.manual_seed(0)
    gate, last = GaussianGate(32, heads=4, gaussians=2), nn.Linear(32, 2)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        wanted = torch.randint(0, 2, (rows,))
        x = torch.randn(rows, 1, 32)
        x[:, 0, 8:12] += 3 * (2 * wanted[:, None] - 1)  # the band
        return x, wanted

    def loss() -> Tensor:
        x, wanted = batch(64)
        return F.cross_entropy(last(32 * gate(x)[:, 0]), wanted)

    fit([*gate.parameters(), *last.parameters()], loss, 300, 1e-2)
    x, wanted = batch(2000)
    right = float((last(32 * gate(x)[:, 0]).argmax(-1) == wanted).float().mean())
    mean = gate.gate(x).detach().flatten(-2).mean((0, 1))
    factor = (mean - mean.min()) / (mean.max() - mean.min())
    band = float(factor[8:12].mean() - factor[torch.arange(32).sub(10).abs() > 2].mean())
    return Measured(
        "the gate sums to 1 over each slice, is uniform for one wide Gaussian, and does not change "
        "when features are shifted or scaled; 2 G H numbers are learned; trained on a band of "
        "informative features, it gives them a larger importance factor than the others",
        max(sums, moved) < 1e-4 and uniform < 1e-6 and count == 24 and right > 0.95 and band > 0,
        {"sums": sums, "moved": moved, "uniform": uniform, "parameters": count,
         "accuracy": right, "importance of the band above the rest": band},
    )  # fmt: skip


@check("ninformer")
def mixer_gate() -> Measured:
    """Without token maps tokens do not meet; with them all do; digits are told apart better."""
    layer, x = MixerGate(32, tokens=12), torch.randn(1, 12, 32)
    changed = x.clone()
    changed[:, 5] = torch.randn(32)
    with torch.no_grad():
        met = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 0).sum()
        layer.over_tokens[-1].weight.zero_(), layer.over_tokens[-1].bias.zero_()
        alone = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 0).sum()
        layer.over_channels[-1].weight.zero_(), layer.over_channels[-1].bias.zero_()
    exact = gap(layer(x), layer.to_value(x) * x)
    accuracy = {name: _digits(name) for name in ("ninformer", "mlp-mixer")}
    return Measured(
        "with token maps at zero a changed token changes its own output alone, otherwise all; with "
        "the inner last maps at zero the gate is x itself; on 8 x 8 digits the gated block is not "
        "behind an MLP-Mixer of as many parameters",
        int(met) == 12 and int(alone) == 1 and exact < 1e-6
        and accuracy["ninformer"] >= accuracy["mlp-mixer"],
        {"outputs changed": int(met), "without token maps": int(alone), "gate is x": exact,
         **{f"accuracy, {name}": a for name, a in accuracy.items()}},
    )  # fmt: skip


class _Mixer(nn.Module):
    """An MLP-Mixer block on 16 tokens, as wide as the gated block's inner network."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList((nn.LayerNorm(dim), nn.LayerNorm(dim)))
        self.tokens, self.channels = (
            nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, n)) for n in (16, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).mT).mT
        mixed: Tensor = x + self.channels(self.norms[1](x))
        return mixed


def _digits(name: str) -> float:
    """Accuracy on noisy shifted glyphs, five strokes drawn on 8 x 8 places, in 2 x 2 patches."""
    torch.manual_seed(0)
    glyphs = (torch.rand(10, 8, 8) < 0.35).float()

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        wanted = torch.randint(0, 10, (rows,))
        image = glyphs[wanted] + 0.8 * torch.randn(rows, 8, 8)
        shift = int(torch.randint(-1, 2, ()))
        image = image.roll(shift, 2)
        patches = image.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
        return patches, wanted

    dim = 32
    embed, last = nn.Linear(4, dim), nn.Linear(dim, 10)
    if name == "ninformer":
        body: nn.Module = nn.Sequential(nn.LayerNorm(dim), MixerGate(dim, tokens=16, hidden=48))
    else:
        body = _Mixer(dim, 61)  # as many parameters as the gated block: 5,9xx

    def scores(x: Tensor) -> Tensor:
        x = embed(x)
        answer: Tensor = last((x + body(x)).mean(1))
        return answer

    def loss() -> Tensor:
        x, wanted = batch(64)
        return F.cross_entropy(scores(x), wanted)

    held = [*embed.parameters(), *body.parameters(), *last.parameters()]
    fit(held, loss, 500, 3e-3)
    hits = []
    for _ in range(6):
        x, wanted = batch(500)
        hits.append((scores(x).argmax(-1) == wanted).float().mean())
    return float(torch.stack(hits).mean())


@check("convbert")
def span_convolution() -> Measured:
    """Kernels at the center give the values; reach is the kernel's; the span makes the kernel."""
    layer, x = SpanConvolution(32, heads=4, kernel=5), torch.randn(1, 20, 32)
    input = scene_of(x)
    with torch.no_grad():
        saved = layer.to_kernel.weight.clone()
        layer.to_kernel.weight.zero_()
        layer.to_kernel.bias.copy_(torch.tensor([0.0, 0.0, 200.0, 0.0, 0.0]).repeat(2))
        center = gap(layer.convolved(input), layer.to_value(x))
        layer.to_kernel.weight.copy_(saved)
        layer.to_kernel.bias.zero_()
    y = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(layer.convolved(scene_of(y))[0, 10].sum(), y)
    reach = int((pull[0].abs().amax(-1) > 0).nonzero().sub(10).abs().max())
    word = x.clone()
    word[:, 15] = word[:, 4]  # the same word in another span
    made = layer.kernels(scene_of(word))
    spans = float((made[:, 15] - made[:, 4]).abs().max())
    dynamic = layer.to_kernel(layer.to_q(word))  # without the span: the word alone
    words = float((dynamic[:, 15] - dynamic[:, 4]).abs().max())
    causal = SpanConvolution(32, heads=4, kernel=5, causal=True)
    later = torch.cat((x[:, :12], torch.randn(1, 8, 32)), 1)
    leak = gap(causal(later)[:, :12], causal(x)[:, :12])
    return Measured(
        "kernels with all mass on the center give the values back; an output depends on tokens "
        "within (k - 1) / 2 of it (twice that through the span); the same word has different "
        "kernels in different spans, and the same one under plain dynamic convolution",
        center < 1e-5 and reach == 2 and spans > 1e-3 and words < 1e-6 and leak < 1e-6,
        {"center": center, "reach, kernel 5": reach, "kernels apart": spans,
         "plain kernels apart": words, "leak, causal": leak},
    )  # fmt: skip


@check("aft")
def attention_free() -> Measured:
    """Kinds of AFT meet where they should, and averages stay within the values."""
    x = torch.randn(2, 14, 16)
    full = AttentionFree(16, longest=14, rank=14, causal=True)
    state = {n: w for n, w in full.state_dict().items() if n != "of_place"}
    conv = ConvolvedAttentionFree(16, heads=16, window=4, causal=True)
    conv.load_state_dict(state, strict=False)
    with torch.no_grad():
        conv.kernels.copy_(conv.kernels[:1].expand(16, -1))
        table = conv.score().steps[0].table[0]
        apart = torch.arange(14) - torch.arange(14)[:, None]
        toeplitz = table[apart.clamp(-4, 4) + 4]
        full.of_place[0] = toeplitz
        full.of_place[1] = torch.eye(14)
    toeplitz_gap = gap(conv(x), full(x))
    local = LocalAttentionFree(16, longest=14, window=14, rank=14, causal=True)
    local.load_state_dict(full.state_dict())
    wide = gap(local(x), full(x))
    simple = SimpleAttentionFree(16)
    simple.load_state_dict(state)
    with torch.no_grad():
        full.of_place.zero_()
    zero = gap(full(x), simple(x))
    k, v = simple.to_k(x), simple.to_v(x)
    weights = k.exp().cumsum(1)
    by_hand = (k.exp() * v).cumsum(1) / weights
    written = gap(simple(x), simple.to_out(simple.to_q(x).sigmoid() * by_hand))
    seen = full.look(full.call(scene_of(x)), scene_of(x))
    seen = joined(seen)
    above, below = v.cummax(1).values + 1e-5, v.cummin(1).values - 1e-5
    inside = bool(((below <= seen) & (seen <= above)).all())
    held = [decode_bytes(simple, n) for n in (4, 64)]
    return Measured(
        "the convolved kind equals the full one with its Toeplitz numbers; numbers of zero give "
        "the simple kind; a window of the whole text gives the full kind; averages lie between "
        "the least and the largest value; the simple kind's memory does not grow",
        max(toeplitz_gap, wide, zero, written) < 1e-5 and inside and held[0] == held[1],
        {"convolved": toeplitz_gap, "wide window": wide, "zero": zero, "written out": written,
         "bytes at 4": held[0], "bytes at 64": held[1]},
    )  # fmt: skip
