"""Checks of rows about what is kept between requests, turns, threads and machines."""

from __future__ import annotations

import math
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories.bare import Bare
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
from regard.policies.passages import Blockwise, Passages
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


@check("block_attention_rag")
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
    marks = layer.extra["longheads"] = own._marks(turn, Call(q, k, v, Rule(Causal())))
    marks.append(torch.cat((q, k, v), 1)[:, :, :-1])
    new = turn.turn(k[:, :, -1:], at[-1:])
    memory.extend(new, v[:, :, -1:])
    _Spy.furthest = 0
    call = Call(turned[:, :, -1:], new, v[:, :, -1:], Rule(Everything(), offset=n - 1), site=site)
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
