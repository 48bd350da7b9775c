"""Short texts are read as ever; in long ones no place is new, and planted chunks are found."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories.bare import Bare
from regard.models.rotary import Turn, Turns
from regard.models.site import Site, Sites
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.long_heads import LongHeads
from regard.run.counting import recording
from regard.verbs import shrink


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


@check("longheads", beyond="passkeys at 128k tokens in LLaMA-2-7B")
@torch.no_grad()
def long_heads() -> Claims:
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
    call = Call.of(
        turned[:, :, -1:], new, v[:, :, -1:], Rule(Everything(), offset=n - 1), site=site
    )
    step = Step(call, n, torch.tensor([n]), layer)
    with recording() as ran:
        out = own.attend(step)
    assert out is not None
    # The last token ends a chunk, whose landmark is made then, within that chunk.
    read = sum(one.result.cost.pairs for one in ran if one.call.m > w) / h
    furthest, found, wrong = _Spy.furthest, True, 0.0
    chosen = own.chosen(q[:, :, -1:], marks.read(), at[-1:], 16)[0, :, 0]
    for head in range(h):
        mine, chunks = long_heads_by_hand(
            q[0, head], k[0, head // 2], v[0, head // 2], turn, n - 1, w, 16
        )
        wrong = max(wrong, gap(mine, out[0, head, 0]))
        found &= chunks == chosen[head].tolist() and planted in chunks
    yield claim("For T <= attended", "largest difference, prompt and step", short).within(
        1e-5, "full causal attention", because=CATALOGUE
    )
    yield claim("No rotated position", "furthest place at T = 16K", furthest).at_most(
        4095, "attended length - 1", because="16 chunks of 256"
    )
    yield claim("attended keys per query", "keys read", read).at_most(
        4096, "the catalogue's bound", because=CATALOGUE
    )
    yield claim(
        "Plant one chunk", "it is among every head's, and chunks are a plain loop's", found
    ).equals(True, "always")
    yield claim("Plant one chunk", "difference of the output", wrong).within(
        1e-5, "a plain loop", because=FLOAT32
    )
