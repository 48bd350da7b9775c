"""The scan is softmax over each prefix, at any scale, however it is cut."""

from __future__ import annotations

import torch

from regard.core.partial import Partial, merge
from regard.core.scan import prefix_softmax
from regard.layers.latent import Aaren
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.linear_cost import decode_bytes
from regard.papers.shared.measure import gap


@check("aaren")
def aaren() -> Claims:
    """The scan is softmax over each prefix, at any scale, however it is cut."""
    worst = 0.0
    for size in (1.0, 1e4):
        # float32 holds a score of 1e4 to 1e-3 only, whoever computes with it.
        scores, v = size * torch.randn(2, 3, 50).double(), torch.randn(2, 3, 50, 4).double()
        wanted = torch.stack([
            torch.einsum("bhn,bhne->bhe", scores[..., :t].softmax(-1), v[:, :, :t])
            for t in range(1, 51)
        ], 2)  # fmt: skip
        size_of = float(wanted.abs().max())
        for chunk in (1, 7, 64):
            worst = max(worst, gap(prefix_softmax(scores, v, chunk=chunk)[0], wanted) / size_of)
        first, state = prefix_softmax(scores[..., :20], v[:, :, :20])
        rest, _ = prefix_softmax(scores[..., 20:], v[:, :, 20:], state=state)
        worst = max(worst, gap(torch.cat((first, rest), 2), wanted) / size_of)
    laws = 0.0
    for _ in range(100):
        a, b, c = (Partial(torch.randn(1, 1, 1, 4), 10 * torch.randn(1, 1, 1)) for _ in range(3))
        laws = max(
            laws,
            gap(merge(merge(a, b), c).out, merge(a, merge(b, c)).out),
            gap(merge(a, b).out, merge(b, a).out),
        )
    held = [decode_bytes(Aaren(32, heads=4), n) for n in (4, 256)]
    yield claim(
        "Scan output equals", "largest relative difference, scores of 1 and 1e4", worst
    ).within(1e-6, "softmax of the prefix", because=CATALOGUE)
    yield claim(
        "chunked, sequential", "the same over chunks of 1, 7, 64, and two calls", worst
    ).within(1e-6, "softmax of the prefix", because=FLOAT32)
    yield claim("streaming state", "bytes after 256 tokens", held[1]).equals(held[0], "after 4")
    yield claim("merge is associative", "largest difference of 100 triples", laws).within(
        1e-5, "the other order", because=FLOAT32
    )
