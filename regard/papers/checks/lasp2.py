"""LASP-2 equals one scan, and sends one memory a pass, however long the text."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.run.scanning import scan
from regard.schemes import Contiguous, Traffic, traffic
from regard.schemes.lasp2 import scan_sharded
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers


def over(
    world: int, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, log_decay: float | None
) -> tuple[list[Tensor], list[tuple[Traffic, Traffic]]]:
    """Scan over ranks, with the backward: (out, dq, dk, dv) together, and what each rank sent."""
    layout = Contiguous(q.shape[2], world)

    def one(peers: Peers) -> tuple[list[Tensor], Traffic, Traffic]:
        own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, v)]
        with traffic() as forward:
            out, _ = scan_sharded(*own, mesh=peers, log_decay=log_decay)
        with traffic() as back:
            grads = torch.autograd.grad(out, own, layout.take(d_out, peers.rank, 2))
        return [out.detach(), *grads], forward, back

    found = on_ranks(world, one)
    return [torch.cat([x[0][i] for x in found], 2) for i in range(4)], [x[1:] for x in found]


@check("lasp2", beyond="training at 2,048K tokens, and its speed")
def lasp2() -> Claims:
    """Outputs and gradients are those of one scan; messages do not grow with the text."""
    off, sent, messages = 0.0, {}, set()
    for n in (130, 260):
        for log_decay in (None, -0.05):
            q, k, v, d_out = (torch.randn(2, 4, n, 16) / 4 for _ in range(4))
            given = [x.clone().requires_grad_(True) for x in (q, k, v)]
            out, _ = scan(*given, log_decay=log_decay)
            one = [out.detach(), *torch.autograd.grad(out, given, d_out)]
            many, ranks = over(4, q, k, v, d_out, log_decay)
            off = max(off, *(float((a - b).abs().max()) for a, b in zip(many, one, strict=True)))
            if log_decay is None:
                sent[n] = [x.sent for pair in ranks for x in pair]
                messages |= {x.messages.total() for pair in ranks for x in pair}
    yield claim("single-device causal linear attention", "difference", off).within(
        1e-5, "regard.scan in one process", because=CATALOGUE
    )
    yield claim("count messages", "messages of a rank in a pass", max(messages)).equals(
        3, "one to each other rank: a single gather"
    )
    yield claim(
        "does not change when the sequence length is doubled", "bytes", sum(sent[260])
    ).equals(sum(sent[130]), "those of half the length")
