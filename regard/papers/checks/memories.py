"""Checks of rows about what is kept between requests, turns, threads and machines."""

from __future__ import annotations

import math
import random
from itertools import count, permutations
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories.bare import Bare
from regard.memories.remote import AttentionWorkers, staggered, wire_bytes
from regard.memories.reserved import Reservation, Reserved
from regard.memories.tiers import Cost, Tiers, Worth, least_recent, per_idle_time
from regard.models.attach import attach
from regard.models.loading import load
from regard.models.rotary import Turn, Turns
from regard.models.site import Site, Sites
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.policies_evicting import llama
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.long_heads import LongHeads
from regard.policies.remote_attention import RemoteAttention
from regard.run.api import attend
from regard.serving.conversations import Conversations
from regard.serving.passages import Blockwise, Passages
from regard.serving.threads import think_together
from regard.verbs import shrink


def dense_mask(met: Tensor) -> Tensor:
    """A mask for a model of transformers, of which pairs [n, m] may meet."""
    return torch.zeros(met.shape).masked_fill(~met, torch.finfo(torch.float32).min)[None, None]


def block_mask(lengths: list[int]) -> Tensor:
    """Which pairs meet: causal, inside a block, or from the last one."""
    n = sum(lengths)
    block = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    i = torch.arange(n)
    own = (block[:, None] == block) | (block[:, None] == len(lengths) - 1)
    return own & (i <= i[:, None])


@check("block_attention_rag", long=True)
@torch.no_grad()
def block_attention() -> Measured:
    """Passages read once are what a forward with the block mask makes of them, in any order."""
    wrong, staged, alone, tokens, flops = 0.0, 0.0, 0.0, [], []
    models: list[Any] = [llama(), load()[0].float()]
    for model in models:
        vocab, draw = model.config.vocab_size, torch.Generator().manual_seed(1)
        texts = [torch.randint(3, vocab, (n,), generator=draw).tolist() for n in (40, 23, 61)]
        question = torch.randint(3, vocab, (17,), generator=draw).tolist()
        passages = Passages(model)
        for order in permutations(texts):
            inputs = passages.inputs(order, question)
            whole, last = inputs["input_ids"], len(question)
            mask = block_mask([*map(len, order), last])
            dense = model(whole, attention_mask=dense_mask(mask)).logits[:, -last:]
            with FlopCounterMode(display=False) as counter:
                ours = model(whole[:, -last:], past_key_values=inputs["past_key_values"]).logits
            flops.append((model, counter.get_total_flops()))
            tokens.append(passages.encoded)
            wrong = max(wrong, gap(ours, dense))
        with attach(model, Blockwise([*map(len, order), last]), check=False):
            staged = max(staged, gap(model(whole).logits[:, -last:], dense))
        no_passage = passages.inputs([], texts[0])["input_ids"]
        ours = model(no_passage, past_key_values=passages.cache([])).logits
        alone = max(alone, gap(ours, model(no_passage).logits))
    same = all(len({f for m, f in flops if m is one}) == 1 for one, _ in flops)
    read_once = set(tokens) == {124}
    with FlopCounterMode(display=False) as counter:
        model(whole)
    share = flops[-1][1] / counter.get_total_flops()
    return Measured(
        "on a random Llama and on the model that ships, cached passages turned to their places "
        "give the logits of one forward with the block mask and ordinary positions, for all six "
        "orders (1e-4); the training mask is the same, and without passages it is full attention "
        "(1e-4); passages are run once, and a further prompt takes the FLOPs of its question alone",
        wrong < 1e-4 and staged < 1e-4 and alone < 1e-4 and same and read_once and share < 0.2,
        {"largest difference": wrong, "as trained": staged, "no passage": alone,
         "tokens run for passages": tokens[-1], "FLOPs of a further prompt, of all": share},
        left_out="fine-tuning on the mask and its accuracy; times to the first token on a GPU",
    )  # fmt: skip


class _Spy(Turn):
    """A rotation that notes the furthest place it was asked for."""

    furthest = 0

    def turn(self, x: Tensor, at: Tensor | int) -> Tensor:
        _Spy.furthest = max(_Spy.furthest, int(torch.as_tensor(at).max()))
        return super().turn(x, at)


def long_heads_by_hand(
    q: Tensor, k: Tensor, v: Tensor, turn: Turn, t: int, w: int, count: int
) -> tuple[Tensor, list[int]]:
    """What the newest query of one head sees: bare q, k, v [t + 1, d]."""
    d, line = q.shape[1], torch.arange(w)

    def turned(x: Tensor, at: Tensor) -> Tensor:
        return turn.turn(x[None, None], at)[0, 0]

    worth = []
    for c in range(1, t // w - 1):
        own = slice(c * w, (c + 1) * w)
        q_, k_ = turned(q[own], line), turned(k[own], line)
        mean = ((q_ @ k_.T / math.sqrt(d)).softmax(-1) @ v[own]).mean(0)
        landmark = (mean @ k_.T / math.sqrt(d)).softmax(-1) @ k_
        worth.append((float(q[t] @ landmark), c))
    best = sorted(c for _, c in sorted(worth)[::-1][: count - 3])
    chunks = [0, *best, t // w - 1, t // w]
    slots = torch.cat([torch.arange(c * w, (c + 1) * w) for c in chunks])
    slots = slots[slots <= t]
    keys = turned(k[slots], torch.arange(len(slots)))
    query = turned(q[t:], torch.tensor([(count - 1) * w + t % w]))
    return ((query @ keys.T / math.sqrt(d)).softmax(-1) @ v[slots])[0], chunks


@check("longheads")
@torch.no_grad()
def long_heads() -> Measured:
    """Short texts are read as ever; in long ones no place is new, and planted chunks are found."""
    model = llama()
    ids = torch.randint(3, 64, (2, 96))
    plain = model(ids).logits
    with shrink(model, LongHeads(chunk=32), keep=96, check=False):
        cache = model(ids[:, :-1]).past_key_values
        last = model(ids[:, -1:], past_key_values=cache).logits
        short = max(gap(model(ids).logits, plain), gap(last[:, -1], plain[:, -1]))

    h, g, d, w, n = 2, 1, 32, 256, 16_384
    turn = _Spy(1e4 ** (-torch.arange(0, d, 2) / d))
    q, k, v = torch.randn(1, h, n, d), torch.randn(1, g, n, d), torch.randn(1, g, n, d)
    planted = 23
    k[:, :, planted * w : (planted + 1) * w] += q[:, ::2, -1:] / 2
    q[:, 1::2, -1:] = q[:, ::2, -1:]
    site = Site(0, "self", "layers.0", h, g, d, causal=True)
    own = LongHeads(chunk=w)
    own.turns = Turns((turn,))
    own.begin(torch.nn.Linear(1, 1), Sites([site]), Budget(tokens=4096))
    memory, at = Bare(turn), torch.arange(n)
    layer: Any = SimpleNamespace(memory=memory, extra={}, valid=None)
    turned = turn.turn(q, at)
    memory.extend(turn.turn(k[:, :, :-1], at[:-1]), v[:, :, :-1])
    marks = layer.extra["longheads"] = own._marks(turn, Call.of(q, k, v, Rule(Causal())))
    marks.append(torch.cat((q, k, v), 1)[:, :, :-1])
    new = turn.turn(k[:, :, -1:], at[-1:])
    memory.extend(new, v[:, :, -1:])
    _Spy.furthest = 0
    rule = Rule(Everything(), offset=n - 1)
    call = Call.of(turned[:, :, -1:], new, v[:, :, -1:], rule, site=site)
    step = Step(site, call, n, torch.tensor([n]), layer)
    out = own.attend(step)
    assert out is not None
    furthest, read, found, wrong = _Spy.furthest, step.pairs, True, 0.0
    chosen = own.chosen(q[:, :, -1:], marks.read(), at[-1:], 16)[0, :, 0]
    for head in range(h):
        mine, chunks = long_heads_by_hand(
            q[0, head], k[0, head // 2], v[0, head // 2], turn, n - 1, w, 16
        )
        wrong = max(wrong, gap(mine, out[0, head, 0]))
        found &= chunks == chosen[head].tolist() and planted in chunks
    return Measured(
        "a text that fits is read as by full attention (1e-5, prompt and step); at 16,384 tokens a "
        "query reads 4,096 keys, at places up to 4,095 (landmarks are made at places up to 255); "
        "the chunks and the output are those of a plain loop (1e-5), and a chunk whose keys "
        "point to the query is among those of every head",
        short < 1e-5 and furthest <= 4095 and read == 4096 and found and wrong < 1e-5,
        {"short text": short, "furthest place": furthest, "keys read": read or 0,
         "against a loop": wrong, "planted chunk found": found},
        left_out="passkeys at 128k tokens in LLaMA-2-7B",
    )  # fmt: skip


def recomputed(worth: Worth, seed: int, cost: Cost, longest: int, size: int = 64) -> float:
    """Cost of what is made again in a trace of conversations that share one tier.

    Twenty people talk in turns of some hundred tokens, and think between them for as long as people
    do: mostly seconds, sometimes many minutes. There is room for a quarter of their longest talks.
    """
    draw, each = random.Random(seed), 2 * 2
    tiers = Tiers(device=5 * longest * each, host=0, size=size, cost=cost, worth=worth)
    spent = 0.0
    due = {f"{person}": draw.expovariate(1 / 300) for person in range(20)}
    lengths = dict.fromkeys(due, 0)
    for _ in range(250):
        name = min(due, key=lambda x: due[x])
        clock = due[name]
        if name in tiers:
            dropped, _, _ = tiers.take(name)
            spent += sum(cost(at) for at in range(0, dropped, size))
        new = draw.randint(longest // 80, longest // 9)
        lengths[name] += new
        if lengths[name] > longest:  # the next conversation of the same person
            lengths[name] = new
        x = torch.zeros(1, 1, lengths[name], 1, dtype=torch.float16)
        tiers.put(name, x, x, now=clock)
        due[name] = clock + draw.lognormvariate(4.5, 1.3)
    return spent


@check("pensieve")
@torch.no_grad()
def pensieve() -> Measured:
    """A turn has the logits of the whole history for any split, and runs what it must."""
    model: Any = llama()
    draw = random.Random(0)
    wrong, counted, splits = 0.0, True, set()
    for _ in range(24):
        lengths = [draw.randint(1, 90) for _ in range(3)]
        token = 2 * 4 * 2 * 16 * 4  # keys and values of 4 layers, 2 heads of 16, float32
        room = [draw.choice([0, 20, 60, 120]) * token for _ in range(2)]
        tiers = Tiers(room[0], room[1], draw.choice([0, 1 << 20]), size=8)
        talks = Conversations(model, tiers=tiers, clock=count().__next__)
        ids = torch.randint(3, 64, (1, sum(lengths)))
        done = 0
        for n in lengths:
            before = tiers.where("ann") if "ann" in tiers else {}
            run = talks.run
            logits = talks.say("ann", ids[:, done : done + n])
            done += n
            whole = model(ids[:, :done]).logits[:, -n:]
            wrong = max(wrong, gap(logits, whole))
            counted &= talks.run - run == n + before.get("dropped", 0)
            splits.add(tuple(sorted(before)))
    kinds = {"pairs": (Cost([(0, 1.0), (16_000, 20.0)]), 8000),
             "weights": (Cost([(0, 1.0), (16_000, 2.5)]), 8000),
             "short": (Cost([(0, 1.0), (16_000, 2.5)]), 1000)}  # fmt: skip
    share = {
        name: [
            recomputed(per_idle_time, seed, *how) / recomputed(least_recent, seed, *how)
            for seed in range(3)
        ]
        for name, how in kinds.items()
    }
    return Measured(
        "for random turns and tiers (dropped, disk, host, device) the logits of each turn are "
        "those of a forward over the whole history (1e-5), and dropped and new tokens alone are "
        "run; on each of three traces of talks of up to 8,000 tokens, dropping by cost over idle "
        "time makes less again than dropping the least recently used, where attention dominates "
        "the cost (20 times as much at 16,000 tokens)",
        wrong < 1e-5 and counted and max(share["pairs"]) < 1,
        {"largest difference": wrong, "tokens run as counted": counted, "splits met": len(splits),
         "worst share of LRU, attention dear": max(share["pairs"]),
         "best share of LRU, attention dear": min(share["pairs"]),
         "worst share of LRU, weights dear": max(share["weights"]),
         "worst share of LRU, talks of up to 1,000 tokens": max(share["short"])},
        left_out="where weights dominate the cost, or talks are short, nothing dependable is saved "
        "(the shares above); transfers that overlap with layers, ragged batches of many "
        "conversations, and throughput on a GPU",
    )  # fmt: skip


def resident(size: int) -> int:
    """Bytes in memory of the range of addresses of this process that is so large."""
    found = False
    with open("/proc/self/smaps", encoding="ascii") as file:
        for line in file:
            if line.startswith("Size:"):
                found = int(line.split()[1]) << 10 >= size
            elif found and line.startswith("Rss:"):
                return int(line.split()[1]) << 10
    return -1


@check("vattention")
def vattention() -> Measured:
    """64 GiB of addresses take the memory of the tokens written, and attention sees tensors."""
    layers, heads, size, group = 4, 8, 64, 1 << 16
    slots, longest = 16, 1 << 18
    rooms = Reservation(slots, longest, layers, heads, size, group=group)
    reserved = resident(rooms.reserved)
    lengths, used, same = [3000, 700, 1500], 0, True
    for n in lengths:
        slot = rooms.open()
        memories = [Reserved(rooms, layer, [slot]) for layer in range(layers)]
        for memory in memories:
            k, v = torch.randn(1, heads, n, size), torch.randn(1, heads, n, size)
            memory.extend(k[:, :, :-5], v[:, :, :-5])
            for t in range(n - 5, n):
                memory.extend(k[:, :, t : t + 1], v[:, :, t : t + 1])
            q, read = torch.randn(1, heads, 1, size), memory.read()
            same &= torch.equal(attend(q, read.k, read.v), attend(q, k, v))
            used += k.nbytes + v.nbytes
            del k, v
    grown, most = resident(rooms.reserved), len(lengths) * 2 * layers * group
    mapped, maps = rooms.nbytes, rooms.maps
    rooms.close(0)
    rooms.need(rooms.open(), 3000)
    again = rooms.maps - maps
    for slot in range(slots):
        rooms.close(slot)
    rooms.reclaim()
    left = resident(rooms.reserved)
    return Measured(
        "64 GiB of addresses take no memory; resident memory of the range is what was mapped, "
        "which is what was written within a group of 64 KiB for each tensor and slot; attention "
        "over the view equals attention over a tensor bit for bit; a slot that is used again maps "
        "nothing; what is reclaimed is given back",
        rooms.reserved == 64 << 30 and reserved == left == 0 and used <= mapped < used + most
        and grown == mapped and same and again == 0,
        {"bytes reserved": rooms.reserved, "resident for that": reserved, "bytes written": used,
         "bytes mapped": mapped, "resident growth": grown, "bit for bit": same,
         "maps of a used slot": again, "resident after reclaiming": left},
        left_out="virtual memory of a GPU, and throughput",
    )  # fmt: skip


@check("group_think")
@torch.no_grad()
def group_think() -> Measured:
    """Threads step by step are one forward with mask and places; words reach others a step on."""
    model: Any = llama()
    prompt, budget, count_ = torch.randint(3, 64, (9,)).tolist(), 12, 3
    headers = [[10 + n, 20 + n] for n in range(count_)]

    def scores_of(changed: tuple[int, int] | None = None) -> tuple[Tensor, list[list[int]]]:
        heard = []

        def choose(scores: Tensor, said: list[list[int]]) -> list[int]:
            heard.append(scores.clone())
            best = scores.argmax(-1).tolist()
            if changed is not None and len(said[0]) == changed[1]:
                best[changed[0]] = (best[changed[0]] + 1) % 64
            return list(best)

        threads = think_together(model, prompt, headers, budget=budget, choose=choose)
        list(threads)
        return torch.stack(heard), threads.ids  # scores before token k of each thread

    heard, ids = scores_of()
    # One forward over the tokens in the order of time.
    order = [(k, n) for k in range(budget - 1) for n in range(count_)]
    p, whole = len(prompt), [*prompt, *(ids[n][k] for k, n in order)]
    met = torch.zeros(len(whole), len(whole), dtype=torch.bool)
    met[:, :p] = True
    met[:p, :p] = torch.ones(p, p, dtype=torch.bool).tril()
    for i, (k, n) in enumerate(order):
        for j, (then, m) in enumerate(order):
            met[p + i, p + j] = then < k or (then, m) == (k, n)
    places = [*range(p), *(p + n * budget + k for k, n in order)]
    logits = model(
        torch.tensor([whole]), attention_mask=dense_mask(met), position_ids=torch.tensor([places])
    ).logits[0, p:]
    one = max(gap(logits[i], heard[k + 1, n]) for i, (k, n) in enumerate(order))

    other, _ = scores_of(changed=(1, 5))
    # What stands before token 6 is the logits of step 5, which only the thread itself can feel.
    before = max(gap(other[:6], heard[:6]), gap(other[6, [0, 2]], heard[6, [0, 2]]))
    after = min(gap(other[7, n], heard[7, n]) for n in range(count_))

    alone = think_together(model, prompt, [[]], budget=budget)
    list(alone)
    plain = model.generate(
        torch.tensor([prompt]), max_new_tokens=budget, do_sample=False, eos_token_id=None
    )[0, p:].tolist()

    def steps(n: int) -> int:  # name 24 things; thread i takes the i-th that nobody has named
        def choose(scores: Tensor, said: list[list[int]]) -> list[int]:
            left = sorted(set(range(30, 54)) - {t for own in said for t in own})
            return [left[min(i, len(left) - 1)] if left else 2 for i in range(n)]

        threads = think_together(model, prompt, [[3]] * n, budget=40, choose=choose, stop=2)
        return len(list(threads)) - 2  # without header and end

    taken = [steps(n) for n in (1, 2, 4)]
    return Measured(
        "step by step logits of three threads are those of one forward over all tokens with mask "
        "and places written out (1e-4); one thread is ordinary decoding; a token changed at step 5 "
        "changes no others' logits up to that step, and those of every thread after; two and four "
        "threads name 24 things, none twice, in a half and a quarter of the steps",
        one < 1e-4 and before == 0 and after > 1e-4 and alone.ids[0] == plain
        and taken == [24, 12, 6],
        {"against one forward": one, "up to the change": before, "least change after it": after,
         "one thread as generate": alone.ids[0] == plain,
         "steps of 1, 2, 4 threads": " ".join(map(str, taken))},
        left_out="whether trained models share work by themselves: the rule of the toy is given",
    )  # fmt: skip


@check("lamina_attention_offloading")
@torch.no_grad()
def attention_offloading() -> Measured:
    """Two processes attend: the same tokens, bytes by the formula, both sides busy."""
    model: Any = llama()
    ids = torch.randint(3, 64, (2, 50))
    how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **how)
    with AttentionWorkers(2) as workers:
        with shrink(model, RemoteAttention(workers=workers), check=False):
            same = torch.equal(model.generate(ids, **how), plain)
            cache = model(ids).past_key_values
            before = workers.sent + workers.received
            model(ids[:, :1], past_key_values=cache)
            moved = workers.sent + workers.received - before
        memory = workers.remote()
        q, k, v = torch.randn(1, 8, 99, 32), torch.randn(1, 2, 99, 32), torch.randn(1, 2, 99, 32)
        memory.append(k[:, :, :-1], v[:, :, :-1])
        memory.append(k[:, :, -1:], v[:, :, -1:])
        wrong = gap(memory.attend(q[:, :, -1:]), attend(q[:, :, -1:], k, v))
    formula = wire_bytes(heads=4, kv_heads=2, size=16, batch=2, layers=4, item=4)
    idle = max(max(staggered(n, 1.0, 1.0 / (n - 1))) for n in (2, 4, 8))
    uneven = staggered(4, 3.0, 2.0)[0]
    return Measured(
        "with two processes that keep one key head each, 20 tokens of two texts are those of the "
        "model alone; a step moves (2 + 2/G) e d B L bytes, to the byte; what was kept and what is "
        "new merge to full softmax (1e-6); in the staggered schedule neither side is idle (under "
        "0.1%) where t_attention = t_model / (n - 1), and replicas are where it is twice that",
        same and moved == formula and wrong < 1e-6 and idle < 1e-3 and uneven > 0.3,
        {"same tokens": same, "bytes of a step": moved, "by the formula": formula,
         "merge against softmax": wrong, "idle": idle, "idle replicas, twice the time": uneven},
        left_out="sending q before k and v are projected (all three are made when attention is "
        "called; q goes out first); links between machines, and throughput for money",
    )  # fmt: skip
