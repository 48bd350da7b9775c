"""No votes is ordinary attention; votes only grow; a pruned memory is enough."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import Attention
from regard.layers.building import model
from regard.layers.selective import SelectiveAttention
from regard.memories import Ring
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.linear_cost import scene_of
from regard.papers.shared.measure import gap
from regard.papers.shared.until_learned import fit_until

VARIABLES = 4


def _assignments(name: str, keys: Any = None, **settings: int) -> tuple[float, float]:
    """Accuracy of reading the last value of a variable, and with a memory of a few keys.

    A text is a first token, assignments (one token for each variable and value), and a question
    (one token for each variable). `keys` is what the memory keeps keys in.
    """
    restart()
    values, count = 4, 12
    vocab = 1 + VARIABLES * values + VARIABLES
    tiny = model(
        [name] * 2, dim=48, heads=4, vocab=vocab, position="rotary", tied=False, **settings
    )

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(0, VARIABLES, (rows, count))
        which[:, :VARIABLES] = torch.arange(VARIABLES)
        what = torch.randint(0, values, (rows, count))
        asked = torch.randint(0, VARIABLES, (rows, 1))
        place = torch.where(which == asked, torch.arange(count), -1).amax(1, keepdim=True)
        told = 1 + which * values + what
        tokens = torch.cat((torch.zeros_like(asked), told, 1 + VARIABLES * values + asked), 1)
        return tokens, told.gather(1, place)[:, 0]

    def loss() -> Tensor:
        tokens, wanted = batch(64)
        return F.cross_entropy(tiny(tokens)[:, -1], wanted)

    fit_until(tiny.parameters(), loss, 0.001, 600, 4e-3)
    tokens, wanted = batch(512)
    with torch.no_grad():
        right = (tiny(tokens)[:, -1].argmax(-1) == wanted).float().mean()
        memory = tiny.memory(keys)
        tiny(tokens[:, :-1], memory=memory)
        cut = (tiny(tokens[:, -1:], memory=memory)[:, -1].argmax(-1) == wanted).float().mean()
    return float(right), float(cut)


@check("selective_attention")
def selective() -> Claims:
    """No votes is ordinary attention; votes only grow; a pruned memory is enough."""
    x = torch.randn(2, 30, 32)
    plain, layer = Attention(32, heads=4, causal=True), SelectiveAttention(32, heads=4)
    layer.load_state_dict(plain.state_dict())
    with torch.no_grad():
        layer.to_q.weight[:8] = plain.to_q.weight[:8] = 0
    silent = gap(layer(x), plain(x))
    layer = SelectiveAttention(32, heads=4)
    with torch.no_grad():
        turned = Attention(32, heads=4, causal=True)
        turned.to_k.weight[:8] = -turned.to_q.weight[:8]
    bare = SelectiveAttention(32, heads=4)
    bare.load_state_dict(turned.state_dict())
    y = x[:1, :1].expand(2, 30, 32)  # every score of the first head is -|q|^2
    negative = gap(bare(y), turned(y))
    cast = layer.votes(layer.call(scene_of(x)))
    exempt = float(
        torch.cat((cast[..., 0].flatten(), cast.diagonal(0, 1, 2).flatten())).detach().max()
    )
    memory = layer.memory()
    with torch.no_grad():
        steps = torch.cat([layer(x[:, i : i + 1], memory=memory) for i in range(30)], 1)
    decoded = gap(steps, layer(x))
    # One key for each variable, beside the first token.
    whole, pruned = _assignments("selective_attention", keep=VARIABLES + 1)
    other, other_pruned = _assignments("mha", keys=lambda rule: Ring(VARIABLES + 1, sinks=1))
    yield claim(
        "Zero head-0 logits", "difference from ordinary attention, scores of 0", silent
    ).within(1e-6, "multi-head attention of the same weights", because=FLOAT32)
    yield claim(
        "Zero head-0 logits", "difference from ordinary attention, negative scores", negative
    ).within(1e-6, "multi-head attention of the same weights", because=FLOAT32)
    yield claim("incremental decode", "difference of decoding from the whole", decoded).within(
        1e-5, "the parallel pass", because=CATALOGUE
    )
    yield claim(
        "F is monotone in i", "least vote that is cast", float(cast.detach().min())
    ).at_least(0, "no vote taken back")
    yield claim("F is monotone in i", "votes on the first token and on oneself", exempt).equals(
        0.0, "none"
    )
    yield claim(
        "Variable-assignment toy", "accuracy with as many keys as variables", pruned
    ).at_least(1.0, "all right", because=CATALOGUE)
    yield claim("Variable-assignment toy", "accuracy that pruning costs", whole - pruned).below(
        other - other_pruned, "what it costs the plain model to keep the most recent"
    )
