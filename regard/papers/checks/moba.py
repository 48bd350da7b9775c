"""All blocks is full attention; merging is masking; the future is not seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.core.partial import Partial, merge
from regard.core.support import Blocks, Causal
from regard.layers.attention import Attention
from regard.layers.block_routing import BlockRouting, gates
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.linear_cost import scene_of
from regard.papers.shared.measure import gap
from regard.run.api import partial


@check("moba")
def block_routing() -> Claims:
    """All blocks is full attention; merging is masking; the future is not seen."""
    n, block = 50, 8
    x = torch.randn(2, n, 32)
    plain = Attention(32, heads=4, causal=True)
    every = BlockRouting(32, heads=4, block=block, blocks=7)
    every.load_state_dict(plain.state_dict())
    full = gap(every(x), plain(x))

    layer = BlockRouting(32, heads=4, block=block, blocks=3)
    call = layer.call(scene_of(x))
    top = gates(call, layer.block)
    past = torch.arange(7) <= (torch.arange(n) // block)[:, None]
    best = top.masked_fill(~past, -torch.inf).topk(3).indices
    open_ = torch.zeros_like(top, dtype=torch.bool).scatter(-1, best, True) & past
    mask = open_.repeat_interleave(block, -1)[..., :n] & torch.ones(n, n, dtype=torch.bool).tril()
    q, k, v = (t.detach().requires_grad_() for t in (call.q, call.k, call.v))
    dense = F.scaled_dot_product_attention(q, k, v, mask)
    masked = gap(layer.look(call.replace(q=q, k=k, v=v), scene_of(x)), dense)
    # The efficient form: the own block, causal, and past blocks, merged by what each weighs.
    own = partial(q, k, v, Causal() & Blocks(block))
    parts = [own]
    for b in range(7):
        keys = slice(b * block, (b + 1) * block)
        part = partial(q, k[:, :, keys], v[:, :, keys])
        seen = open_[..., b] & (torch.arange(n) // block > b)
        parts.append(Partial(part.out, part.lse.masked_fill(~seen, -torch.inf)))
    merged = merge(*parts).out
    wanted = torch.autograd.grad(dense.square().sum(), (q, k, v))
    found = torch.autograd.grad(merged.square().sum(), (q, k, v))
    gradients = max(map(gap, found, wanted))
    changed = x.clone()
    changed[:, 29:] = torch.randn(2, n - 29, 32)
    leak = gap(layer(changed)[:, :29], layer(x)[:, :29])
    pairs = int(mask.sum(-1).max())
    yield claim("k*B >= n", "difference", full).within(
        1e-5, "full causal attention", because=FLOAT32
    )
    yield claim(
        "efficient merged form", "difference of own and past blocks merged", gap(merged, dense)
    ).within(1e-6, "masked dense attention", because=CATALOGUE)
    yield claim("efficient merged form", "difference of the layer", masked).within(
        1e-6, "masked dense attention", because=CATALOGUE
    )
    yield claim("efficient merged form", "largest difference of gradients", gradients).within(
        1e-5, "masked dense attention", because=FLOAT32
    )
    yield claim(
        "no query sees a future", "change before changed tokens of the same block", leak
    ).within(1e-6, "none", because=FLOAT32)
    yield claim("scored pairs per query", "most keys of a query", pairs).at_most(3 * block, "k B")
