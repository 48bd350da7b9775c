"""Checks of rows about what is kept: evicted keys, streaming heads, pages of a pool."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.layers.attention import Attention
from regard.layers.building import model as build_model
from regard.memories import Kept, Paged, Pool, Ring, Split
from regard.models.attach import attach
from regard.models.site import Site, Sites
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit
from regard.papers.seeding import restart
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.evicting import PyramidKV, SnapKV
from regard.policies.streaming_heads import Gates, LServe, near
from regard.run.api import attend


def llama(layers: int = 4, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> torch.nn.Module:
    """A random Llama of small size, with attention that is sharper than at random."""
    from regard.core.errors import need

    transformers = need("transformers", "hf", "has the model")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=4096,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made: torch.nn.Module = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.q_proj.weight *= 10
    return made


def sites_of(layers: int, heads: int, kv_heads: int, size: int) -> Sites:
    """Sites of a made model."""
    return Sites(
        Site(x, "self", f"layers.{x}", heads, kv_heads, size, causal=True) for x in range(layers)
    )


def step_of(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Step:
    """A prompt at one site."""
    n = k.shape[2]
    return Step(site, Call.of(q, k, v, Rule(Causal()), site=site), n, torch.full((q.shape[0],), n))


@check("pyramid_kv")
def pyramid() -> Measured:
    """Budgets fall in even steps and add up; without the slope it is SnapKV; planted keys stay."""
    layers, n, w, c = 8, 2000, 8, 200
    sites = sites_of(layers, 4, 2, 16)
    none = torch.nn.Linear(1, 1)

    def kept(policy: SnapKV, site: Site, planted: Tensor | None = None) -> Tensor:
        torch.manual_seed(site.layer or 0)
        q, k, v = torch.randn(1, 4, n, 16), torch.randn(1, 2, n, 16), torch.randn(1, 2, n, 16)
        if planted is not None:
            q[:, :, -w:] = q[:, :1, -1:].clone()
            k[:, :, planted] = 6 * q[:, :1, -1:]
        policy.begin(none, sites, Budget(tokens=c))
        found = policy.slots(step_of(q, k, v, site))
        assert found is not None
        return found

    pyramid_, flat = PyramidKV(window=w), PyramidKV(window=w, beta=1.0)
    sizes = [kept(pyramid_, s).shape[-1] for s in sites]
    steps = torch.tensor(sizes).diff()
    same = all(torch.equal(kept(flat, s), kept(SnapKV(window=w), s)) for s in sites)
    planted = torch.tensor([30, 150, 290])
    survive = all(
        set(planted.tolist()) <= set(own.tolist())
        for s, size in zip(sites, sizes, strict=True) if size > w + 15
        for own in kept(pyramid_, s, planted)[0]
    )  # fmt: skip
    older = sum(x - w for x in sizes)
    return Measured(
        "over 8 layers older keys kept add up to 8 (C - w) but for rounding, in even steps from "
        "the first layer down; beta = 1 keeps SnapKV's keys exactly; keys planted to match the "
        "last queries stay at a budget of 10%, wherever a layer keeps more than 15 older ones",
        abs(older - layers * (c - w)) <= layers and bool((steps < 0).all())
        and int(steps.max() - steps.min()) <= 1 and same and survive,
        {"keys by layer": str(sizes), "older in all": older, "wanted": layers * (c - w),
         "as SnapKV": same, "planted stay": survive},
        left_out="LongBench; the demo model's curves are in benchmarks/results/shrink-demo.json",
    )  # fmt: skip


def _copier(layers: int = 2) -> torch.nn.Module:
    """Train attention-only layers to go on with random tokens shown twice."""
    restart()
    tiny = build_model(
        [Attention(64, heads=4, causal=True, position="rotary") for _ in range(layers)],
        vocab=40, dim=64, feedforward=None, tied=False,
    )  # fmt: skip
    fit(tiny.parameters(), lambda: _loss(tiny, _repeated(32)), 400, 6e-3)
    return tiny


def _repeated(rows: int, period: int | None = None, n: int = 64) -> tuple[Tensor, int]:
    period = int(torch.randint(8, 29, ())) if period is None else period
    return torch.randint(0, 40, (rows, period)).repeat(1, n // period + 1)[:, :n], period


def _loss(tiny: torch.nn.Module, shown: tuple[Tensor, int]) -> Tensor:
    tokens, period = shown
    said = tiny(tokens)[:, period:-1]
    return torch.nn.functional.cross_entropy(said.flatten(0, 1), tokens[:, period + 1 :].flatten())


@check("duo_attention", long=True)
def duo() -> Measured:
    """Gates keep the induction heads of a trained toy; at 1 and 0 they are full and streaming."""
    tiny = _copier()
    with attach(tiny, check=False) as bare:
        sites = Sites(bare.sites)
    restart()
    shown = _repeated(16, 25)
    plain = tiny(shown[0]).detach()

    def gated(start: float) -> Gates:
        return Gates(sites, sinks=2, recent=6, start=start)

    with torch.no_grad():
        with attach(tiny, [gated(1.0)], check=False):
            ones = gap(tiny(shown[0]), plain)
        with attach(tiny, [gated(0.0)], check=False):
            zeros = tiny(shown[0])
        window = _Windowed(2, 6)
        with attach(tiny, [window], check=False):
            streaming = gap(zeros, tiny(shown[0]))

    learned = gated(1.0)
    parameters = list(learned.gates.values())
    for p in tiny.parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(70):
        tokens, period = _repeated(8, 25)
        full = tiny(tokens)[:, period:].detach()
        with attach(tiny, [learned], check=False):
            ours = tiny(tokens)[:, period:]
        loss = (ours - full).square().mean() / full.square().mean()
        optimizer.zero_grad()
        (loss + 0.1 * torch.cat(parameters).mean()).backward()
        optimizer.step()
        for p in parameters:
            p.data.clamp_(0, 1)
    gates = torch.stack([p.detach() for p in parameters])
    keep = gates > 0.5

    def with_roles(full_heads: Tensor) -> float:
        made = gated(0.0)
        for p, row in zip(made.gates.values(), full_heads, strict=True):
            p.data.copy_(row.float())
        with attach(tiny, [made], check=False), torch.no_grad():
            return float(_loss(tiny, shown))

    chosen, swapped, whole = with_roles(keep), with_roles(~keep), float(_loss(tiny, shown))

    n, d, sinks, recent = 8192, 16, 4, 128
    x = torch.randn(1, 4, n, d)
    memory = Split([((1,), Kept()), ((0, 2, 3), Ring(recent, sinks))])
    memory.extend(x, x)
    memory.settle()
    counted = memory.nbytes / (2 * 4 * d)
    # The ring holds positions in 4 bytes each for its three heads together.
    wanted = n + 3 * (sinks + recent) + (sinks + recent) * 4 / (2 * 4 * d)
    return Measured(
        "gates of 1 give the full model and gates of 0 a streaming one (1e-5); optimized gates "
        "keep some of 8 heads of a toy trained to copy at 25 tokens' distance, all in the last "
        "layer: with these alone the loss is near the full model's, with the others alone it is "
        "over ten times that; at 8,192 tokens, bytes are r T + (1 - r)(sinks + recent), and the "
        "ring's positions",
        ones < 1e-5 and streaming < 1e-5 and 0 < int(keep.sum()) < 8 and not bool(keep[0].any())
        and chosen < 2 * whole + 0.2 and swapped > 10 * chosen and abs(counted - wanted) < 1,
        {"gates": str([[round(float(x), 2) for x in row] for row in gates]),
         "loss, full": whole, "loss, kept heads": chosen, "loss, the others": swapped,
         "keys held": counted, "wanted": wanted, "ones": ones, "zeros": streaming},
        left_out="models of 7B and more; the demo model's gates and needles by budget are in "
        "benchmarks/",
    )  # fmt: skip


class _Windowed(Gates):
    """Streaming masks in every head, run once."""

    def __init__(self, sinks: int, recent: int) -> None:
        super().__init__(Sites(), sinks, recent)

    def before(self, call: Call) -> Call:
        support = call.rule.support & near(self.recent, self.sinks)
        return call.replace(rule=call.rule.replace(support=support))

    def after(self, call: Call, partial: object) -> object:  # type: ignore[override]
        return partial


@check("lserve")
def lserve() -> Measured:
    """Bounds hold, small logical pages find needles more often, and reading is constant."""
    from regard.policies.decoding import Bounds, page_scores
    from regard.policies.registry import policy
    from regard.verbs import shrink

    restart()
    q, k = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 512, 32)
    bounds = Bounds(16)
    bounds.append(k)
    score = page_scores(q, bounds.read())[:, :, 0]
    exact = (q @ k.repeat_interleave(2, 1).transpose(2, 3))[:, :, 0]
    slack = float((score - exact.unflatten(-1, (-1, 16)).amax(-1)).min())

    def found(logical: int, tries: int = 100) -> float:
        hits = 0
        for seed in range(tries):
            torch.manual_seed(seed)
            keys, query = torch.randn(1, 1, 4096, 32), torch.randn(1, 1, 1, 32)
            place = int(torch.randint(64, 4032, ()))
            keys[0, 0, place] = 1.4 * query[0, 0, 0]
            held = Bounds(logical)
            held.append(keys)
            pages = page_scores(query, held.read())[0, 0, 0]
            pages = pages.unflatten(0, (-1, 64 // logical)).amax(-1)
            hits += place // 64 in pages.topk(8).indices.tolist()
        return hits / tries

    small, large = found(16), found(64)
    made = llama()
    ids = torch.randint(3, 64, (1, 1024))
    gates = {"gates": {s: [0.2, 0.8] for s in range(4)}}

    def step_of_length(n: int, keep: int | float, streaming: float = 0.5) -> tuple[Tensor, float]:
        one = policy("lserve", page=64, streaming=streaming, recent=64)
        assert isinstance(one, LServe)
        one.take(gates)
        with shrink(made, one, keep=keep, check=False) as shrunk, torch.no_grad():
            cache = made(ids[:, : n - 1]).past_key_values
            before = sum(x.flops for x in shrunk.stage.costs.values())
            logits = made(ids[:, n - 1 : n], past_key_values=cache).logits
            after = sum(x.flops for x in shrunk.stage.costs.values())
        return logits, after - before

    with torch.no_grad():
        plain = made(ids[:, :512]).logits[:, -1:]
    whole = gap(step_of_length(512, 4096, 0.0)[0], plain)
    half, double = step_of_length(512, 192)[1], step_of_length(1024, 192)[1]
    return Measured(
        "page scores bound every q.k of their page from above; with physical pages of 64, logical "
        "pages of 16 find a planted needle more often than of 64; with all pages and no streaming "
        "head, decoding gives the dense logits (1e-4); work of a step stays the same while the "
        "context doubles",
        slack > -1e-4 and small > large and whole < 1e-4 and abs(half - double) < 1e-6 * half,
        {"least slack": slack, "found, logical 16": small, "found, logical 64": large,
         "all pages against dense": whole, "FLOPs of a step, 512": half, "and 1,024": double},
        left_out="one block-skipping kernel and 4-bit pages on a GPU, and their times",
    )  # fmt: skip


@check("paged_attention")
def pages() -> Measured:
    """Any mix of appends, forks and ends reads as contiguous keys, and every page comes back."""
    size, heads, d = 16, 2, 8
    pool, rng = Pool(size), random.Random(0)
    live: list[tuple[Paged, Tensor]] = []
    worst, most_waste, sound = 0.0, 0, True
    for turn in range(200):
        act = rng.random()
        if not live or act < 0.15:
            x = torch.randn(1, heads, rng.randint(1, 40), d)
            memory = Paged(pool)
            memory.extend(x, x)
            live.append((memory, x))
        elif act < 0.65:
            place = rng.randrange(len(live))
            memory, held = live[place]
            x = torch.randn(1, heads, rng.randint(1, 5), d)
            memory.extend(x, x)
            live[place] = memory, torch.cat((held, x), 2)
        elif act < 0.85:
            memory, held = rng.choice(live)
            live.append((memory.fork(), held))
        else:
            live.pop(rng.randrange(len(live)))[0].free()
        if live and turn % 4 == 0:
            memory, held = rng.choice(live)
            q = torch.randn(1, 4, 1, d)
            wanted = attend(q, held, held)
            worst = max(worst, gap(memory.attend(q).out, wanted))
        held_pages = {p for m, _ in live for t in m.tables or () for p in t}
        sound &= not held_pages & set(pool.free) and len(held_pages) == pool.held
        waste = [len(m.tables[0]) * size - m.seen for m, _ in live if m.tables]
        most_waste = max([most_waste, *waste])
    for memory, _ in live:
        memory.free()
    empty = pool.held

    beams = Paged(pool)
    x = torch.randn(1, heads, 100, d)
    beams.extend(x, x)
    beams.repeat(4, 1)
    return Measured(
        "over 200 random appends, forks and ends, attention over pages equals attention over "
        "contiguous keys (1e-5), no page is both free and held, no row wastes a page, all pages "
        "come back; four beams of a prompt of 100 tokens hold its 7 pages once",
        worst < 1e-5 and sound and most_waste < size and empty == 0 and pool.held == 7,
        {"largest difference": worst, "most slots wasted": most_waste, "pages left": empty,
         "pages of four beams": pool.held},
        left_out="scheduling and swapping of a server, and its throughput",
    )  # fmt: skip


__all__ = ["duo", "llama", "lserve", "pages", "pyramid", "sites_of", "step_of"]
