"""Heads together cover the past; what is kept has the closed form; stride 1 is dense."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.s2 import ShardedAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.attending import dense
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


def _far_copy(offsets: list[int] | None) -> float:
    """Accuracy of naming the token at a marked far place, after training."""
    restart()
    layer = ShardedAttention(
        64, heads=8, block=2, stride=4, local=1, offsets=offsets, qk_norm=torch.nn.RMSNorm
    )
    words, mark = torch.nn.Embedding(16, 64), torch.nn.Parameter(torch.randn(64))
    out = torch.nn.Linear(64, 16)

    def batch() -> tuple[Tensor, Tensor]:
        tokens, place = torch.randint(0, 16, (64, 33)), torch.randint(0, 30, (64,))
        marked = F.one_hot(place, 33)[..., None]
        x = words(tokens) + marked * mark
        x = torch.cat((x[:, :-1], mark.expand(64, 1, -1)), 1)
        return out(layer(x)[:, -1]), tokens.gather(1, place[:, None])[:, 0]

    def loss() -> Tensor:
        return F.cross_entropy(*batch())

    held = [*layer.parameters(), *words.parameters(), mark, *out.parameters()]
    fit(held, loss, 300)
    hits = [(s.argmax(-1) == w).float().mean() for s, w in (batch() for _ in range(8))]
    return float(torch.stack(hits).mean())


@check("s2_attention")
def sharded() -> Claims:
    """Heads together cover the past; what is kept has the closed form; stride 1 is dense."""
    n, block, stride, local = 96, 4, 4, 2
    x = torch.randn(2, n, 64)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    one = ShardedAttention(64, heads=8, block=block, stride=1, local=local)
    same = gap(one(x), dense(one, x, causal))

    layer = ShardedAttention(64, heads=8, block=block, stride=stride, local=local)
    masks = layer.rule().support.matrix(n)[0]
    covered = bool(torch.equal(masks.any(0), causal))
    alike = ShardedAttention(64, heads=8, block=block, stride=stride, local=local, offsets=[0] * 8)
    uncovered = float((causal & ~alike.rule().support.matrix(n)[0].any(0)).sum() / causal.sum())
    memory, found = layer.memory(), []
    with torch.no_grad():
        for i in range(n):
            found.append(layer(x[:, i : i + 1], memory=memory))
            kept = memory.get("keys")
            kept.forget_each([s.horizon(i + 1) for s in layer.rule().support.supports])
    decoded = gap(torch.cat(found, 1), dense(layer, x, masks))
    # Of the blocks before the last `local`, one in `stride`; and the last `local` ones.
    now, blocks = n, n // block
    exact = []
    for h, support in enumerate(layer.rule().support.supports):
        shares = sum((j + h % stride) % stride == 0 for j in range(blocks - local + 1))
        wanted = block * (shares + local - 1)
        needed = support.horizon(now).holds(torch.arange(n)).sum()
        exact.append(int(needed) - wanted)
    copies = {name: _far_copy(offsets) for name, offsets in (("own", None), ("alike", [0] * 8))}
    yield claim("stride=1 equals", "difference", same).within(
        1e-5, "dense causal attention", because=FLOAT32
    )
    yield claim("Coverage", "the heads' masks together are the causal mask", covered).equals(
        True, "full coverage"
    )
    yield claim(
        "cache size equals", "keys off the closed form, at most", max(map(abs, exact))
    ).at_most(block, "one block: the last may be begun")
    yield claim("cache size equals", "difference of decoding", decoded).within(
        1e-5, "masked attention over everything", because=CATALOGUE
    )
    yield claim("All-offset-equal", "share of pairs uncovered", uncovered).above(
        0.2, "a fifth", because="three in four of the far ones are"
    )
    yield claim("All-offset-equal", "far copy, own offsets", copies["own"]).above(
        0.95, "learned", because="16 words: chance is 6%"
    )
    yield claim("All-offset-equal", "far copy, one offset", copies["alike"]).below(
        0.6, "fails", because="a quarter of places is seen, the rest guessed: 30%, and near ones"
    )
