"""Parts sum to the logit, and planted coefficients of an MLP are found again."""

from __future__ import annotations

import torch

from regard.models.residual import watched
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.shipped_model import demo
from regard.probes.logits import logit_parts, mlp_decomposition


@check(
    "factual_recall_mechanism",
    beyond="capitals in GPT-2 and others: that heads and MLPs of a model that knows facts do this",
)
def recall() -> Claims:
    """Parts sum to the logit, and planted coefficients of an MLP are found again."""
    model, ids = demo()
    stream = watched(model, ids)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    token = int(torch.randint(len(logits), ()))
    found = logit_parts(stream, token)
    off = abs(float(found.total[0]) - float(logits[token]))
    restart()
    one, two, answer = torch.randn(3, 50, 24).double()
    noise = 1e-3 * torch.randn(50, 24).double()
    planted = 2 * one - two + 0.5 * answer + noise
    solved = mlp_decomposition(planted, {"head 1": one, "head 2": two, "answer": answer})
    wanted = {"head 1": 2.0, "head 2": -1.0, "answer": 0.5}
    worst = max(abs(solved[x] - wanted[x]) for x in wanted)
    yield claim("Residual decomposition", "difference of the sum", off).within(
        1e-4, "the logit", because=CATALOGUE
    )
    yield claim("On planted MLP", "largest difference of coefficients", worst).within(
        1e-2, "2, -1 and a half", because="noise of 1e-3 on 50 x 24 numbers"
    )
