"""Checks of rows about what is computed or read: sparse prompts, selected keys, shared heads."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Tiles
from regard.models.attach import attach
from regard.models.site import Site
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.policies_evicting import llama, step_of
from regard.papers.seeding import restart
from regard.policies.calibration import calibrate
from regard.policies.decoding import DoubleSparsity
from regard.policies.prompts import Hip, MInference, VerticalSlash, causal_tiles, last_rows, lines
from regard.policies.registry import policy
from regard.policies.sharing import KVSharer, Sharing, leaders
from regard.run.api import attend
from regard.verbs import shrink

CAUSAL = Rule(Causal())
SITE = Site(0, "self", "layers.0", 1, 1, 32, causal=True)


def sparse_gap(call: Call, tiles: Tensor, block: int) -> float:
    """Relative error of attention over chosen tiles."""
    dense = attend(call.q, call.k, call.v, CAUSAL)
    chosen = tiles & causal_tiles(call, block)
    sparse = attend(call.q, call.k, call.v, Rule(Causal() & Tiles(chosen, block)))
    return float((sparse - dense).norm() / dense.norm())


def with_lines(n: int, columns: list[int], offsets: list[int], sharp: float = 2.0) -> Call:
    """One head whose queries look at some keys, and some distances back.

    Distances are told by turning planes of two channels, as rotary positions are.
    """
    d = 64
    turn = torch.exp(-torch.arange(20) * 0.35)[None] * torch.arange(n)[:, None]
    key = torch.cat((turn.cos(), turn.sin()), 1)
    query = sum(
        torch.cat(((turn - turn[1] * o + turn[0]).cos(), (turn - turn[1] * o).sin()), 1)
        for o in offsets
    )
    q, k = torch.zeros(n, d), torch.zeros(n, d)
    q[:, :40], k[:, :40] = 1.2 * query, 1.2 * key * 2
    q[:, 40] = 1.0
    k[columns, 40] = 60.0
    v = torch.randn(n, d)
    return Call.of(sharp * q[None, None], k[None, None], v[None, None], CAUSAL, site=SITE)


@check("minference")
def minference() -> Measured:
    """Planted lines are found from the last queries, and the search names synthetic heads."""
    n, block = 1024, 16
    columns, offsets = [100, 333, 650], [0, 200]
    call = with_lines(n, columns, offsets)
    found = lines(last_rows(call, 64))
    tops = sorted(found[0][0, 0, : n - 64].topk(3).indices.tolist())
    slashes = sorted(found[1][0, 0].topk(2).indices.tolist())
    maker = VerticalSlash(block)
    rows = torch.arange(n // block)
    always = (rows[:, None] == rows) | (rows == 0)
    error = sparse_gap(call, always | maker.tiles(call, 0.4), block)

    restart()
    x = torch.randn(1, 1, n, 64)
    dense = sparse_gap(Call.of(x, x, x, CAUSAL), torch.ones(1, 1, 64, 64, dtype=torch.bool), block)

    # Three heads: near keys; lines; blocks that are alike.
    q, k = (torch.zeros(1, 3, n, 64) for _ in range(2))
    # A score that grows with j is weight that fades over 30 tokens back.
    q[:, 0, :, 0], k[:, 0, :, 0] = 8.0, torch.arange(n) / 30
    q[:, 1], k[:, 1] = call.q[0, 0], call.k[0, 0]
    of_block = torch.randperm(n // block)[:, None].expand(-1, block).flatten() % 4
    groups = torch.eye(64)[of_block]
    q[:, 2], k[:, 2] = 40 * groups, groups + 0.05 * torch.randn(n, 64)
    v = torch.randn(1, 3, n, 64)
    heads = Call.of(q, k, v, CAUSAL, site=SITE)
    one = MInference(block)
    named = one.best_patterns(heads, 0.3)
    return Measured(
        "all tiles give dense attention (1e-5); three planted columns and two diagonals are the "
        "strongest lines of the last 64 queries, and attention over them is within 2% of dense; "
        "the search gives A-shape, lines and blocks to heads made so",
        tops == columns and slashes == offsets and error < 0.02 and dense < 1e-5
        and named == ["a_shape", "vertical_slash", "block_sparse"],
        {"columns": str(tops), "diagonals": str(slashes), "error": error, "all tiles": dense,
         "patterns": " ".join(named)},
        left_out="a kernel that reads single columns: here lines are widened to tiles; "
        "times are in benchmarks/results/shrink-cpu.json",
    )  # fmt: skip


@check("hip_attention")
def hip() -> Measured:
    """Scores grow with the log of the length; smooth keys are found, noise is not."""
    block = 16

    def tree(n: int, smooth: bool, keep: float) -> tuple[float, float]:
        restart()
        walk = torch.randn(1, 2, n, 16)
        if smooth:  # keys that change slowly
            kernel = torch.hann_window(257)[None, None] / 128
            flat = torch.nn.functional.pad(walk.transpose(2, 3).reshape(-1, 1, n), (128, 128))
            walk = torch.nn.functional.conv1d(flat, kernel).view(1, 2, 16, n).transpose(2, 3)
            walk = 6 * walk / walk.std()
        # Each query looks for a key far back: the keys there are much alike, or not at all.
        q = 2 * walk.roll(n // 3, 2)
        call = Call.of(q, walk, walk, CAUSAL, site=SITE)
        counting = _Counted(block)
        chosen = counting.tiles(call, keep) & causal_tiles(call, block)
        # Mass of the tiles chosen, for the last row of tiles, against the best as many.
        rows = last_rows(call, block).sum(2)
        by_tile = rows.unflatten(-1, (-1, block)).sum(-1)
        own = chosen[:, :, -1]
        count = int(own.sum(-1).max())
        best = by_tile.topk(count, dim=-1).values.sum(-1)
        return float(((by_tile * own).sum(-1) / best).mean()), counting.scored / len(rows[0])

    mass, _ = tree(4096, True, 0.25)
    noise, _ = tree(4096, False, 0.25)
    # The same number of segments at 4 times the length.
    few, many = tree(1024, True, 0.25)[1], tree(4096, True, 0.0625)[1]
    x = torch.randn(1, 1, 512, 16)
    causal = Call.of(x, x, x, CAUSAL)
    whole = sparse_gap(causal, Hip(block).tiles(causal, 2.0), block)
    return Measured(
        "with a segment for each block it is dense attention (1e-5); at 4 times the length and as "
        "many segments, rounds of scoring grow by 2; with keys that change slowly it finds over "
        "90% of the weight that the best tiles have at 4,096 tokens, with noise less",
        whole < 1e-5 and mass > 0.9 and noise < mass - 0.05 and many - few == 2,
        {"whole": whole, "of best, smooth": mass, "of best, noise": noise,
         "rounds at 1,024": few, "rounds at 4,096": many},
        left_out="millions of tokens, and times on a GPU",
    )  # fmt: skip


class _Counted(Hip):
    """Count rounds of scoring."""

    scored = 0

    def _score(self, q: Tensor, k: Tensor, low: Tensor, high: Tensor) -> Tensor:
        self.scored += 2
        return super()._score(q, k, low, high)


@check("double_sparsity")
def double() -> Measured:
    """A few large channels tell which keys matter; reads are counted."""
    m, d, top = 1024, 64, 64

    def recall(scale: float, by_chance: bool, channels: float = 4 / 64) -> float:
        hits = 0.0
        for seed in range(12):
            torch.manual_seed(seed)
            k, q = torch.randn(1, 1, m, d), torch.randn(1, 1, m, d)
            big = torch.randperm(d)[:4]
            k[..., big] *= scale
            own = DoubleSparsity(channels=channels, random_channels=by_chance)
            step = step_of(q, k, k, SITE)
            at = own.chosen(step)
            worth = (q[:, :, -1].gather(2, at) * k[0, 0][:, at[0, 0]]).sum(-1).flatten()
            truth = (k[0, 0] @ q[0, 0, -1]).topk(top).indices
            hits += len(set(worth.topk(top).indices.tolist()) & set(truth.tolist())) / top
        return hits / 12

    large, medium = recall(20, False), recall(8, False)
    chance, whole = recall(20, True), recall(1, False, 1.0)
    made = llama()
    ids = torch.randint(3, 64, (1, 300))
    with torch.no_grad():
        plain = made(ids).logits[:, -1]

        def last(keep: float | int) -> tuple[Tensor, float]:
            with shrink(made, "double_sparsity", keep=keep, check=False) as shrunk:
                cache = made(ids[:, :-1]).past_key_values
                before = sum(x.flops for x in shrunk.stage.costs.values())
                out = made(ids[:, -1:], past_key_values=cache).logits[:, -1]
                spent = sum(x.flops for x in shrunk.stage.costs.values()) - before
            return out, spent / (4 * 4 * 2.0 * 32)  # keys read by a head, in 4 layers of 4 heads

        dense, (_, read) = gap(last(300)[0], plain), last(40)
    return Measured(
        "all channels find the exact best keys, and all keys give dense logits (1e-4); where 4 of "
        "64 channels are 20 times as large, 4 channels find over 70% of the best 64 of 1,024 keys, "
        "8 times over 50%, and random channels under 20%; a step reads the k keys of its budget",
        whole > 0.999 and dense < 1e-4 and large > 0.7 and medium > 0.5 and chance < 0.2
        and read == 40,
        {"recall, 20x": large, "recall, 8x": medium, "random channels": chance,
         "all channels": whole, "all keys against dense": dense, "keys read": read},
        left_out="offloading with prefetch, 4-bit labels, and times on a GPU",
    )  # fmt: skip


@check("recycled_attention")
def recycled() -> Measured:
    """Full steps refresh what steps between read; what became relevant late is found again."""
    made = llama()
    ids = torch.randint(3, 64, (1, 200))
    restart()

    def run(every: int, keep: float | int) -> tuple[Tensor, list[float]]:
        reads, out = [], []
        with (
            shrink(made, policy("recycled", every=every), keep=keep, check=False) as shrunk,
            torch.no_grad(),
        ):
            cache = made(ids[:, :150]).past_key_values
            for t in range(150, 200):
                before = sum(x.flops for x in shrunk.stage.costs.values())
                out.append(made(ids[:, t : t + 1], past_key_values=cache).logits)
                spent = sum(x.flops for x in shrunk.stage.costs.values()) - before
                reads.append(spent / (4 * 4 * 2.0 * 32))
        return torch.cat(out, 1), reads

    with torch.no_grad():
        plain = made(ids).logits[:, 150:]
    always, wide_ = gap(run(0, 16)[0], plain), gap(run(8, 400)[0], plain)
    stride = 8
    _, reads = run(stride, 16)
    # After the prompt, steps between read 16 keys and each (stride + 1)-th reads all.
    full_at = [t for t, r in enumerate(reads) if r > 100]
    steady = {b - a for a, b in pairwise(full_at)}
    between = {round(r) for t, r in enumerate(reads) if t not in full_at}

    # A needle that the prompt's last query ignores, and a later query wants.
    hit_recycled, hit_evicted = 0, 0
    for seed in range(20):
        torch.manual_seed(seed)
        k = torch.randn(1, 1, 256, 32)
        early, late = torch.randn(2, 32)
        place = 100
        k[0, 0, place] = 2 * (late - early * (late @ early) / (early @ early))
        kept = (k[0, 0] @ early).topk(32).indices
        hit_evicted += int(place in kept)
        hit_recycled += int(place in (k[0, 0] @ late).topk(32).indices)
    return Measured(
        "with every step full, or room for all keys, decoding gives the full model's logits "
        "(1e-4); with 16 keys and a full step after each 8, steps between read 16 keys; a key that "
        "a later query wants is there at the next full step in 20 of 20 tries, where eviction by "
        "the prompt's query lost it",
        always < 1e-4 and wide_ < 1e-4 and steady == {stride + 1} and between == {16}
        and hit_recycled == 20 and hit_evicted < 10,
        {"every step full": always, "room for all": wide_, "steps between full ones": str(steady),
         "keys read between": str(between), "found, recycled": hit_recycled,
         "found, evicted": hit_evicted},
        left_out="the schedule by cosine of queries, continued pretraining, and RULER",
    )  # fmt: skip


@check("kv_sharer")
def sharer() -> Measured:
    """Maps keep their threshold, layers read earlier ones, and bytes fall by the layers shared."""
    import tempfile
    from pathlib import Path

    made = llama(layers=8)
    restart()
    texts = [torch.randint(3, 64, (1, 64)) for _ in range(6)]
    with tempfile.TemporaryDirectory() as folder:
        path = calibrate(made, "kv_sharer", texts, to=Path(folder) / "map")
        with shrink(made, "kv_sharer", calibrate=path, check=False) as shrunk, torch.no_grad():
            one = shrunk.policies[0]
            made(texts[0])
            report = shrunk.report()
            cached = made(texts[0]).logits
    assert isinstance(one, KVSharer)
    with torch.no_grad():
        plain = [
            made(x, use_cache=False, output_hidden_states=True).hidden_states[-1] for x in texts
        ]
        with attach(made, [Sharing(one.sources)], check=False):
            by_stage = made(texts[0], use_cache=False).logits
        with shrink(made, policy("kv_sharer"), keep=1.0, check=False):
            kept = made(texts[0]).logits
        identity = gap(kept, made(texts[0]).logits)
    cosine = KVSharer.closeness(made, texts, plain, one.sources)
    backwards = all(source < layer for layer, source in one.sources.items())
    chains = not set(one.sources) & set(one.sources.values())
    share = report.bytes / report.full_bytes
    return Measured(
        "no map leaves the logits alone; of 8 layers 2 share, each an earlier one that keeps keys "
        "of its own; the map's cosine, measured again, is over the threshold; bytes held fall to "
        "6/8; the cache gives what sharing without one gives (1e-4)",
        identity < 1e-4 and len(one.sources) == 2 and backwards and chains
        and cosine > one.least and abs(share - 0.75) < 1e-3 and gap(cached, by_stage) < 1e-4,
        {"map": str(one.sources), "cosine": cosine, "bytes of full": share,
         "cache against stage": gap(cached, by_stage), "identity": identity},
        left_out="skipping the key and value products of layers that share; far first against "
        "other orders on a trained model",
    )  # fmt: skip


@check("chai")
def clustered() -> Measured:
    """Heads that are copies are clustered and lossless; clusters by chance lose more."""
    made = llama(layers=2, heads=8, kv_heads=8)
    with torch.no_grad():
        for layer in made.model.layers:
            for name in ("q_proj", "k_proj"):
                w = getattr(layer.self_attn, name).weight.view(8, 8, 64)
                w[1::2] = w[::2]
    ids = torch.randint(3, 64, (1, 60))
    with torch.no_grad():
        plain = made(ids).logits

        def cost(keep: float, **settings: object) -> tuple[float, float]:
            one = policy("chai", **settings)
            with shrink(made, one, keep=keep, check=False) as shrunk:
                lost = gap(made(ids).logits, plain)
                report = shrunk.report()
            return lost, report.bytes / report.full_bytes

        whole, (twins, share), chance = cost(1.0)[0], cost(0.5), cost(0.5, random_clusters=True)[0]
        led = leaders(torch.rand(1, 3, 8, 8).repeat_interleave(2, 1), 3).tolist()
    # Kept beside, in 8 bytes each: the leader of each query head, and the 4 heads whose keys stay.
    table = (8 + 4) * 8 / (2 * 8 * 60 * 8 * 4)
    # A trained model is needed for chance to be worse by much; here twins alone are alike.
    return Measured(
        "as many clusters as heads change nothing; of 8 heads that are 4 pairs of twins with "
        "values of their own, 4 clusters find the twins and lose nothing (1e-5), and bytes are "
        "(4 + 8) / 16 and the table; clusters by chance lose over 100 times as much",
        whole < 1e-5 and twins < 1e-5 and chance > 100 * twins
        and abs(share - 0.75 - table) < 1e-6 and led == [0, 0, 2, 2, 4, 4],
        {"all clusters": whole, "twins": twins, "by chance": chance, "bytes of full": share},
        left_out="the elbow that chooses the number of clusters by layer: here it is the budget",
    )  # fmt: skip


@check("shared_attention_weights")
def shared_weights() -> Measured:
    """A span of copies shares without loss, and keys of the span are not kept."""
    made = llama(layers=4)
    ids = torch.randint(3, 64, (1, 50))
    with torch.no_grad():
        plain = made(ids).logits

        def cost(**settings: object) -> tuple[float, float]:
            keep = settings.pop("keep", 0.5)
            with shrink(made, policy("shared_weights", **settings), keep=keep, check=False) as s:
                return gap(made(ids).logits, plain), s.report().bytes / s.report().full_bytes

        empty = cost(keep=1.0)[0]
        late, late_share = cost(first=2, last=3)
        # Layers 2 and 3 become copies that leave their input alone but for attention's output 0.
        for layer in made.model.layers[1:]:
            layer.self_attn.load_state_dict(made.model.layers[1].self_attn.state_dict())
            layer.input_layernorm.load_state_dict(made.model.layers[1].input_layernorm.state_dict())
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        plain = made(ids).logits
        for layer in made.model.layers[2:]:
            layer.self_attn.o_proj.weight.normal_(std=0.2)
        made.model.layers[2].self_attn.o_proj.weight.zero_()
        plain = made(ids).logits
        copies = cost(first=2, last=3)[0]
    return Measured(
        "an empty span is the model; layers of equal weights and inputs share without loss (1e-4); "
        "two of four layers in the span keep no keys, so bytes fall to 3/4; a random model's own "
        "late span does not come free",
        empty < 1e-4 and copies < 1e-4 and abs(late_share - 0.75) < 1e-3 and late > 1e-3,
        {"empty": empty, "copies": copies, "bytes of full": late_share, "a random model": late},
        left_out="score FLOPs, which are made again rather than saved; spans of large models",
    )  # fmt: skip
