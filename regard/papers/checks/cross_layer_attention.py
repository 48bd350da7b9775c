"""Keys across layers: sharers read the owner's, memory is counted, s = 1 is the base model."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.core.heads import expand_heads
from regard.layers.attention import joined
from regard.layers.building import model
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.languages import language_loss
from regard.papers.shared.measure import gap

# The difference of two models alone varies by half of itself from seed to seed.
MODELS = 3
_AT_EQUAL_BYTES = {
    "multi-query": {"head_dim": 8, "kv_heads": 1},
    "shared in pairs": {"head_dim": 16, "kv_heads": 1, "sources": [0, 0, 2, 2]},
}


@check("cross_layer_attention")
def keys_across_layers() -> Claims:
    """Sharers read the owner's keys; counted memory; decoding; s = 1 is the base model."""
    tokens = torch.randint(0, 50, (2, 21))
    sizes = {"dim": 64, "heads": 8, "kv_heads": 2, "vocab": 50, "position": "rotary"}
    restart()
    shared = model(["cross_layer_attention"] * 5, sources=[0, 0, 2, 2, 4], **sizes).eval()
    restart()
    alone = model(["cross_layer_attention"] * 5, **sizes).eval()
    restart()
    base = model(["gqa"] * 5, **sizes).eval()
    same = bool(torch.equal(alone(tokens), base(tokens)))

    memory = shared.memory()
    with torch.no_grad():
        steps = [shared(tokens[:, i : i + 1], memory=memory) for i in range(21)]
        decoded = gap(torch.cat(steps, 1), shared(tokens))
    held = sum(memory.get(f"{i}").get("mixer").get("keys") is not None for i in range(5))

    owner, sharer = (block.mixer for block in list(shared.stack.blocks)[:2])
    x, between = torch.randn(2, 2, 9, 64), {}
    owner(x[0], between=between)
    k, v = between["keys"].k, between["keys"].v
    q = sharer.position.turn(sharer.queries(x[1]), torch.arange(9))
    k, v = expand_heads(k, 8), expand_heads(v, 8)
    explicit = sharer.to_out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
    read = gap(sharer(x[1], between=between), explicit)
    losses = {
        name: sum(language_loss(draw=f"language {i}", **s) for i in range(MODELS)) / MODELS
        for name, s in _AT_EQUAL_BYTES.items()
    }
    yield claim("s=1 is the base model", "equal bit for bit", same).equals(
        True, "grouped-query attention"
    )
    yield claim("cached tensors counted", "pairs kept of 5 layers", held).equals(3, "ceil(L / s)")
    yield claim(
        "a sharer's output", "difference from attention with the leader's k and v", read
    ).within(1e-5, "torch's scaled_dot_product_attention", because=FLOAT32)
    yield claim("incremental decode", "difference from the whole", decoded).within(
        1e-5, "the full forward", because=FLOAT32
    )
    yield claim(
        "on a tiny LM", "loss, shared in pairs, mean of 3", losses["shared in pairs"], over="median"
    ).at_most(losses["multi-query"], "multi-query attention at equal cache bytes")
