"""One key head: repeated it is multi-head attention, equal heads convert, bytes are 1/h."""

from __future__ import annotations

import torch

from regard.layers.attention import Attention
from regard.layers.grouped_query import MultiQuery, pooled_heads
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.languages import equal_key_heads
from regard.papers.shared.measure import gap


@check("mqa")
def one_key_head() -> Claims:
    """Repeating the one key head gives multi-head attention; equal heads convert; bytes are 1/h."""
    x = torch.randn(2, 17, 64)
    one, many = MultiQuery(64, heads=8, causal=True), Attention(64, heads=8, causal=True)
    state = one.state_dict()
    for name in ("to_k.weight", "to_v.weight"):
        state[name] = state[name].repeat(8, 1)
    many.load_state_dict(state)
    repeated = gap(one(x), many(x))

    equal_key_heads(many)
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
    yield claim("Repeating k and v", "difference from multi-head attention", repeated).within(
        1e-6, "MHA with k and v repeated", because=CATALOGUE
    )
    yield claim("an MHA model whose", "difference after conversion", converted).within(
        1e-6, "the MHA that it came from", because=FLOAT32
    )
    yield claim("cache bytes", "bytes kept, times heads", kept[0] * 8).equals(
        kept[1], "bytes of MHA"
    )
    yield claim("h=1 is MHA", "one head is the same bit for bit", same).equals(
        True, "MHA of one head"
    )
