"""Heads as wide as the text can write any attention; narrow ones cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import Attention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit
from regard.run.api import attend


@check("fixed_head_size", long=True)
def wide_heads() -> Claims:
    """Heads at least as wide as the text can write any attention; narrow ones cannot."""
    n, dim = 16, 32
    x = torch.randn(n, dim, dtype=torch.float64)
    wanted = torch.rand(n, n, dtype=torch.float64).add(0.05)
    wanted = wanted / wanted.sum(1, keepdim=True)
    # softmax(X Q K^T X^T / sqrt(d)) = P for Q = pinv(X) log P sqrt(d), K = pinv(X).
    inverse = torch.linalg.pinv(x)
    q = x @ (inverse @ wanted.log() * n**0.5)
    k = x @ inverse
    made = attend(q[None, None], k[None, None], torch.eye(n).double()[None, None])[0, 0]
    wide = gap(made, wanted)

    restart()
    fitted = {}
    for d in (4, 16):
        to_q, to_k = ((0.3 * torch.randn(dim, d)).double().requires_grad_() for _ in range(2))

        def divergence(a: Tensor = to_q, b: Tensor = to_k, d: int = d) -> Tensor:
            scores = (x @ a) @ (x @ b).T / d**0.5
            return F.kl_div(scores.log_softmax(-1), wanted, reduction="batchmean")

        fitted[d] = fit([to_q, to_k], divergence, 1500, 3e-2)[-1]
    x = torch.randn(2, 9, 64)
    same, plain = Attention(64, heads=8, head_dim=8), Attention(64, heads=8)
    same.load_state_dict(plain.state_dict())
    yield claim("Construction: n=16", "distance from P", wide).within(1e-5, "P", because=CATALOGUE)
    yield claim("d_p=4 fitted", "KL from P of a head of size 4", fitted[4]).above(
        fitted[16], "that of a head of size 16, fitted alike", times=10, because=CATALOGUE
    )
    yield claim("d_p=4 fitted", "the same", fitted[4]).above(
        0, "none", plus=1e-3, because="away from 0: far over the KL of rounding"
    )
    yield claim("d_p=D/h equals", "equal bit for bit", bool(torch.equal(same(x), plain(x)))).equals(
        True, "the standard layer"
    )
