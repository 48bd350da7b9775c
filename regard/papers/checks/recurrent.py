"""Checks of rows about layers that carry a running state."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.features import matched_rates
from regard.core.partial import Partial, merge
from regard.core.scan import prefix_softmax
from regard.layers.attention import joined, split
from regard.layers.base import Layer, LayerInput
from regard.layers.flow_attention import EPS, FlowAttention
from regard.layers.latent import Aaren, Latte
from regard.layers.lightning import LightningAttention
from regard.layers.polynomial import Fastmax, LogNormal, LogNormalWithBlocks
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.run.scanning import scan


def scene_of(x: Tensor) -> LayerInput:
    """Put tokens in a input without anything else."""
    return LayerInput(x, x, False, torch.arange(x.shape[1]))


def flops_ratio(layer: Layer, n: int = 512, times: int = 8) -> float:
    """How much more work `times` as many tokens are, per token."""
    counts = []
    for tokens in (n, n * times):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.randn(1, tokens, layer.dim))
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0] / times


def decode_bytes(layer: Layer, steps: int) -> int:
    """Bytes of a layer's memory after some tokens."""
    memory = layer.memory()
    with torch.no_grad():
        for _ in range(steps):
            layer(torch.randn(1, 1, layer.dim), memory=memory)
    return memory.nbytes


def written_out(weights: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Divide positive weights [b, h, n, n] by their row sums and average v."""
    if causal:
        weights = weights.tril()
    return weights / weights.sum(-1, keepdim=True) @ v


@check("lightning_attention")
def lightning() -> Measured:
    """Blocks equal the recurrence and the masked product, gradients too; the state is constant."""
    worst = worst_gradient = 0.0
    for n, chunk in ((37, 16), (64, 64), (50, 7)):
        q, k, v = (torch.randn(1, 2, n, 5).double().requires_grad_() for _ in range(3))
        rates = torch.tensor([-0.1, -0.01]).double()
        apart = torch.arange(n)[:, None] - torch.arange(n)
        mask = torch.where(apart >= 0, (rates[:, None, None] * apart).exp(), 0.0)
        wanted = (q @ k.mT * mask) @ v
        goal = torch.randn_like(wanted)
        gradients = torch.autograd.grad((wanted * goal).sum(), (q, k, v))
        for form in ("chunked", "recurrent"):
            out, _ = scan(q, k, v, log_decay=rates, form=form, chunk=chunk)
            worst = max(worst, gap(out, wanted))
            found = torch.autograd.grad((out * goal).sum(), (q, k, v))
            worst_gradient = max([worst_gradient, *map(gap, found, gradients)])
    layer = LightningAttention(32, heads=4, depth=3, layers=12)
    rate = torch.exp(-8.0 * torch.arange(1, 5) / 4 * (1 - 3 / 12))
    rates_right = gap(layer.log_decay.exp(), rate)
    memory = [decode_bytes(layer, steps) for steps in (8, 64)]
    work = flops_ratio(layer)
    return Measured(
        "blockwise equals the masked product and the recurrence, and gradients those of the "
        "masked product (float64), for lengths that no block divides; a head's decay is "
        "exp(-(8 h / H)(1 - l / L)); memory and work per token do not grow with the length",
        worst < 1e-10 and worst_gradient < 1e-10 and rates_right < 1e-6
        and memory[0] == memory[1] and work < 1.05,
        {"outputs": worst, "gradients": worst_gradient, "bytes at 8": memory[0],
         "bytes at 64": memory[1], "work per token, 8 times the length": work},
    )  # fmt: skip


@check("fastmax")
def fastmax() -> Measured:
    """Features equal the polynomial written out; weights of order 2 are positive."""
    worst, least, sums = 0.0, float("inf"), 0.0
    for order in (1, 2):
        for causal in (True, False):
            layer = Fastmax(32, heads=2, order=order, causal=causal, standardize=order == 2)
            with torch.no_grad():  # order 1 needs small scores for positive sums
                layer.to_q.weight.mul_(1.0 if order == 2 else 0.3)
            layer, x = layer.double(), torch.randn(1, 30, 32).double()
            q, (k, v) = layer.queries(x), layer.keys(x)
            s = _plain(layer, x)
            weights = 1 + s + (s.square() / 2 if order == 2 else 0)
            seen = layer.look(q, k, v, scene_of(x))
            worst = max(worst, gap(seen, written_out(weights, v, causal)))
            if order == 2:
                least = min(least, float(weights.detach().min()))
                ones = layer.look(q, k, torch.ones_like(v), scene_of(x))
                sums = max(sums, gap(ones, torch.ones_like(v)))
    gaps = []
    q, k, v = (torch.randn(1, 1, 20, 8).double() for _ in range(3))
    for order in (1, 2):
        errors = []
        for eps in (0.2, 0.1):
            s = eps * (q @ k.mT)
            taylor = 1 + s + (s.square() / 2 if order == 2 else 0)
            errors.append(gap(written_out(taylor, v, False), s.softmax(-1) @ v))
        gaps.append(errors[0] / errors[1])
    work = flops_ratio(Fastmax(32, heads=2))
    held = worst < 1e-5 and least > 0 and sums < 1e-5 and gaps[0] > 3 and gaps[1] > 6
    return Measured(
        "the linear form equals the written-out polynomial for orders 1 and 2, causal or not; "
        "order 2 has positive weights that sum to 1; halving the scores cuts the distance to "
        "softmax about 2^(p+1) times; work is linear",
        held and work < 1.05,
        {"written out": worst, "least weight": least, "sums": sums,
         "halving, order 1": gaps[0], "halving, order 2": gaps[1], "work per token": work},
    )  # fmt: skip


def _plain(layer: Fastmax, x: Tensor) -> Tensor:
    """Scores of a layer, every pair, standardized where the layer does."""
    q, k = split(layer.to_q(x), layer.heads), split(layer.to_k(x), layer.heads)
    if layer.standardize:
        q, k = ((y - y.mean(-1, True)) / y.std(-1, correction=0, keepdim=True) for y in (q, k))
    return q @ k.mT


@check("lln_attention")
def log_normal() -> Measured:
    """Matched rates spread log-weights as softmax's spread; rates get no gradient."""
    spreads, unmatched = [], []
    for std in (0.7, 1.0, 1.4, 2.0):
        q, k = std * torch.randn(2048, 64), std * torch.randn(2048, 64)
        softmax = (q @ k.T / 8).log_softmax(-1)
        for rates, kept in ((matched_rates(q, k), spreads), ((1.0, 1.0), unmatched)):
            weights = ((rates[0] * q).exp() @ (rates[1] * k).exp().T).log()
            kept.append(float(_row_spread(weights) / _row_spread(softmax)))
    layer = LogNormal(32, heads=2, causal=True).train()
    x = torch.randn(1, 40, 32)
    layer(x).sum().backward()
    frozen = not layer.alphas.requires_grad and layer.alphas.grad is None
    layer.eval()
    q, (k, v) = layer.queries(x), layer.keys(x)
    linear = gap(layer.look(q, k, v, scene_of(x)), written_out(q @ k.mT, v, True))
    both = LogNormalWithBlocks(32, heads=2, blocks=8, causal=True).eval()
    changed = x.clone()
    changed[:, 30:] = 0
    leak = gap(both(changed)[:, :30], both(x)[:, :30])
    near = max(abs(s - 1) for s in spreads)
    return Measured(
        "for Gaussian queries and keys the log-weights of matched rates spread within 20% of "
        "softmax's, and of rates 1 far less; the linear form equals the written-out one; rates "
        "carry no gradient",
        near < 0.2 and max(unmatched) < 0.5 and linear < 1e-4 and frozen and leak < 1e-5,
        {**{f"spread at {s}": x for s, x in zip((0.7, 1.0, 1.4, 2.0), spreads, strict=True)},
         **{f"unmatched at {s}": x for s, x in zip((0.7, 1.0, 1.4, 2.0), unmatched, strict=True)},
         "written out": linear, "leak": leak},
    )  # fmt: skip


def _row_spread(log_weights: Tensor) -> Tensor:
    return (log_weights - log_weights.mean(-1, keepdim=True)).square().mean()


@check("latte")
def latte() -> Measured:
    """Weights written out are convex of rank L; the recurrence is the whole, far keys included."""
    layer, x = Latte(32, heads=2, latents=5, causal=True).double(), torch.randn(1, 24, 32).double()
    scores = split(layer.to_k(x), 2).transpose(-1, -2)  # [b, h, l, n]
    over = scores[..., None, :].expand(-1, -1, -1, 24, -1)
    causal = torch.ones(24, 24, dtype=torch.bool).tril()
    per_latent = over.masked_fill(~causal, -torch.inf).softmax(-1)  # p(s | l, t)
    shares = split(layer.to_q(x), 2).softmax(-1)
    weights = torch.einsum("bhtl,bhlts->bhts", shares, per_latent)
    seen = layer.to_out(joined(weights @ split(layer.to_v(x), 2)))
    written = gap(layer(x), seen)
    sums, least = gap(weights.sum(-1), torch.ones(1, 2, 24).double()), float(weights.min())
    ahead = Latte(32, heads=2, latents=5).double()
    both = split(ahead.to_q(x), 2).softmax(-1) @ split(ahead.to_k(x), 2).softmax(2).mT
    rank = int(torch.linalg.matrix_rank(both).max())
    with torch.no_grad():
        layer.to_k.bias = torch.nn.Parameter(torch.full((10,), 80.0).double())
    memory = layer.memory()
    with torch.no_grad():
        steps = torch.cat([layer(x[:, i : i + 1], memory=memory) for i in range(24)], 1)
    decoded = gap(steps, layer(x))
    held = [decode_bytes(Latte(32, heads=2, latents=5, causal=True), n) for n in (8, 128)]
    return Measured(
        "the implied weights are not negative, sum to 1 and have rank at most L; the recurrence "
        "equals the parallel form, with keys 80 higher too; memory does not grow",
        max(written, sums, decoded) < 1e-6 and least >= 0 and rank <= 5 and held[0] == held[1],
        {"written out": written, "sums": sums, "rank of 5 latents": rank, "decoded": decoded,
         "bytes at 8": held[0], "bytes at 128": held[1]},
    )  # fmt: skip


@check("aaren")
def aaren() -> Measured:
    """The scan is softmax over each prefix, at any scale, however it is cut."""
    worst = 0.0
    for size in (1.0, 1e4):
        scores, v = size * torch.randn(2, 3, 50), torch.randn(2, 3, 50, 4)
        wanted = torch.stack([
            torch.einsum("bhn,bhne->bhe", scores[..., :t].softmax(-1), v[:, :, :t])
            for t in range(1, 51)
        ], 2)  # fmt: skip
        for chunk in (1, 7, 64):
            worst = max(worst, gap(prefix_softmax(scores, v, chunk=chunk)[0], wanted))
        first, state = prefix_softmax(scores[..., :20], v[:, :, :20])
        rest, _ = prefix_softmax(scores[..., 20:], v[:, :, 20:], state=state)
        worst = max(worst, gap(torch.cat((first, rest), 2), wanted))
    laws = 0.0
    for _ in range(100):
        a, b, c = (Partial(torch.randn(1, 1, 1, 4), 10 * torch.randn(1, 1, 1)) for _ in range(3))
        laws = max(
            laws,
            gap(merge(merge(a, b), c).out, merge(a, merge(b, c)).out),
            gap(merge(a, b).out, merge(b, a).out),
        )
    held = [decode_bytes(Aaren(32, heads=4), n) for n in (4, 256)]
    return Measured(
        "the scan equals the fixed query's softmax over each prefix, with scores of 1e4 too, and "
        "whether in chunks, token by token or in two calls; the state is of one size; merging is "
        "associative and commutative",
        worst < 1e-5 and laws < 1e-5 and held[0] == held[1],
        {"prefixes": worst, "laws of merge": laws, "bytes at 4": held[0], "bytes at 256": held[1]},
    )


@check("flow_attention")
def flow() -> Measured:
    """Flows are conserved, the linear form is the matrix form, the future changes nothing."""
    layer, x = FlowAttention(32, heads=2, causal=False).double(), torch.randn(1, 20, 32).double()
    q, (k, v) = layer.queries(x), layer.keys(x)
    flows = layer.flows(q, k, scene_of(x))
    pairs = (q + EPS) @ (k + EPS).mT
    taken = gap((pairs / flows.incoming).sum(-1), torch.ones(1, 2, 20).double())
    given = gap((pairs / flows.outgoing.mT).sum(-2), torch.ones(1, 2, 20).double())
    competing = v * 20 * flows.conserved_out.softmax(2)
    matrix = (q / flows.incoming) @ k.mT @ competing * flows.conserved_in.sigmoid()
    written = gap(layer.look(q, k, v, scene_of(x)), matrix)
    causal, y = FlowAttention(32, heads=2, causal=True), torch.randn(1, 20, 32, requires_grad=True)
    (pull,) = torch.autograd.grad(causal(y)[:, 9].sum(), y)
    leak, work = float(pull[:, 10:].abs().max()), flops_ratio(causal, 1024)
    times = []
    for n in (1024, 8192):
        z = torch.randn(1, n, 32)
        with torch.no_grad():
            causal(z)
            start = time.process_time()
            for _ in range(3):
                causal(z)
        times.append(time.process_time() - start)
    return Measured(
        "divided by what flows in, each sink takes 1, and divided by what flows out each source "
        "gives 1; the linear form equals the n x n form; a causal output has no gradient from the "
        "future; work is linear",
        max(taken, given) < 1e-5 and written < 1e-5 and leak == 0 and work < 1.05,
        {"sinks": taken, "sources": given, "written out": written, "gradient ahead": leak,
         "work per token, 8 times the length": work,
         "processor time, 8 times the length": times[1] / times[0]},
    )  # fmt: skip
