"""Star attention: its second phase is exact, its first is for up to two blocks, anchors matter."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.result import Result
from regard.core.rule import Rule
from regard.core.support import Blocks, Causal
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.shipped_model import demo
from regard.run.api import attend
from regard.run.runner import run
from regard.schemes import Contiguous, ShardedKeys
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers
from regard.schemes.spreading import anchored


class InBlocks(Stage):
    """Attention of the first phase, with or without anchors; keeps the mass on one key."""

    want: ClassVar = ("weights",)

    def __init__(self, size: int, anchors: bool, key: int) -> None:
        super().__init__()
        self.size, self.anchors, self.key = size, anchors, key
        self.mass: list[float] = []

    def before(self, call: Call) -> Call:
        """Change the rule."""
        if self.anchors:
            return call.replace(rule=anchored(call.rule, self.size))
        support = call.rule.support & Blocks(self.size)
        return call.replace(rule=call.rule.replace(support=support))

    def see(self, call: Call, result: Result) -> None:
        """Note the mass that the last block gives to the key, its own query left out."""
        assert result.weights is not None
        self.mass.append(float(result.weights[:, :, self.key + 1 :, self.key].mean()))


@check("star_attention", beyond="models of 8B and 70B, and their accuracy and speed")
def star_attention() -> Claims:
    """Merged over caches it is softmax; two blocks are dense; anchors take the sink's mass."""
    world, n = 4, 61
    k, v, q = torch.randn(2, 2, n, 16), torch.randn(2, 2, n, 16), torch.randn(2, 4, 3, 16)
    layout = Contiguous(n, world)

    def one(peers: Peers) -> Tensor:
        own = [layout.take(x, peers.rank, 2) for x in (k, v)]
        keys = ShardedKeys.of(own[0], own[1], peers, layout=layout, same_queries=True)
        return run(Call(q, keys, Rule(Causal()), torch.arange(n - 3, n))).out

    whole = attend(q, k, v, Rule(Causal()).shift(n - 3))
    off = max(gap(out, whole) for out in on_ranks(world, one))
    yield claim("Phase 2 merged output", "difference, any rank", off).within(
        1e-6, "softmax over all caches", because=CATALOGUE
    )
    q, k, v = torch.randn(2, 4, 64, 16), torch.randn(2, 2, 64, 16), torch.randn(2, 2, 64, 16)
    dense = attend(q, k, v, Causal())
    one_block = gap(attend(q, k, v, anchored(Rule(Causal()), 64)), dense)
    yield claim("n=1 equals dense", "difference", one_block).within(
        2e-6, "causal attention", because=FLOAT32
    )
    two_blocks = gap(attend(q, k, v, anchored(Rule(Causal()), 32)), dense)
    yield claim("n=2 equals dense", "difference", two_blocks).within(
        2e-6, "causal attention", because=FLOAT32
    )
    model, _ = demo()
    size = 16
    # A Module types its parts as Tensor or Module.
    ids = torch.randint(3, int(model.config.vocab_size), (16, 4 * size))  # type: ignore[union-attr,arg-type]
    mass = {}
    for anchors in (True, False):
        stage = InBlocks(size, anchors, 3 * size)
        with attach(model, [stage], check=False), torch.no_grad():
            model(ids)
        mass[anchors] = max(stage.mass)
    yield claim(
        "removing anchors", "most mass of a layer on the last block's first token", mass[False]
    ).above(mass[True], "with anchors", times=2, because="strongly: twice and more")
