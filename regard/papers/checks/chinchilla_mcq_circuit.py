"""Parts sum to the logits; few dimensions of queries and keys carry few directions."""

from __future__ import annotations

import torch

from regard.analysis.compress import Compressed, subspace
from regard.core.call import Call
from regard.core.rule import Rule
from regard.models.residual import watched
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.shipped_model import demo
from regard.probes.logits import logit_parts


@check("chinchilla_mcq_circuit", beyond="Chinchilla 70B")
def compression() -> Claims:
    """Parts sum to the logits; few dimensions of queries and keys carry few directions."""
    model, ids = demo()
    stream = watched(model, ids)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    letters = logits.topk(4).indices
    parts = max(
        abs(float(logit_parts(stream, int(t)).total[0]) - float(logits[t])) for t in letters
    )
    site = Site(0, module="attention", heads=1, kv_heads=1)
    restart()
    # Four labels that differ along three directions, in 16 dimensions of noise.
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    frame = torch.linalg.qr(torch.randn(16, 16).double()).Q
    which = torch.randint(4, (400,))
    labels = 6 * corners @ frame[:, :3].T
    k = labels.expand(400, 4, 16) + 0.05 * torch.randn(400, 4, 16).double()
    q = (6 * corners @ frame[:, :3].T)[which][:, None] + 0.05 * torch.randn(400, 1, 16).double()

    def right(rank: int) -> tuple[float, float]:
        stage = Compressed({(site, 0): subspace(q[:, 0], k.flatten(0, 1), rank)})
        plain = Call.of(q[:, None], k[:, None], k[:, None], Rule(), site=site)
        less = stage.before(plain)
        maps = [closed_weights(c, "check")[:, 0, 0] for c in (plain, less)]
        return float((maps[1].argmax(1) == which).double().mean()), gap(*maps)

    full, three, one = right(16), right(3), right(1)
    yield claim("Sum of all nodes'", "largest difference of four letters' logits", parts).within(
        1e-4, "the logits", because=CATALOGUE
    )
    yield claim("Sum of all nodes'", "difference of r = d_h", full[1]).within(
        1e-8, "the head", because=FLOAT64
    )
    yield claim("on a toy whose labels", "right with r = 3", three[0]).above(
        full[0], "with all dimensions", times=0.99, because=CATALOGUE
    )
    yield claim("on a toy whose labels", "right with r = 1", one[0]).below(
        0.9, "drops", because="a tenth, where noise costs nothing"
    )
