"""One pass over prompt, chosen and rejected equals two passes, and no answer sees the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.core.support import SharedPrefix
from regard.core.tilemap import EMPTY
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.serving.answers import answer_log_probs


def _alone(model: Any, prompt: Tensor, answer: Tensor) -> Tensor:
    """Log-probability of an answer by a causal forward of its own."""
    words = torch.cat([prompt, answer])
    log_p = model(words[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_p.gather(-1, answer[:, None]).sum()


@check("dpo_prefix_sharing", beyond="the speed of training, and prefixes packed with others")
def prefix_sharing() -> Claims:
    """One pass over prompt, chosen and rejected equals two passes, and no answer sees the other."""
    model: Any = llama(2).double()
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda m, x, y: read.append(x[0].numel()))
    prompt, chosen, rejected = (torch.randint(3, 64, (n,)) for n in (23, 9, 14))
    one_c, one_r = answer_log_probs(model, prompt, [chosen, rejected])
    rows = read[0]
    two_c, two_r = _alone(model, prompt, chosen), _alone(model, prompt, rejected)
    weights = [p for p in model.parameters() if p.requires_grad]
    # The loss of direct preference optimisation, without its reference model.
    one = torch.autograd.grad(-nn.functional.logsigmoid(0.3 * (one_c - one_r)), weights)
    two = torch.autograd.grad(-nn.functional.logsigmoid(0.3 * (two_c - two_r)), weights)
    gradients = max(gap(a, b) for a, b in zip(one, two, strict=True))
    _, other_r = answer_log_probs(model, prompt, [(chosen + 1) % 64, rejected])

    support, n, size = SharedPrefix(23, (9, 14)), 46, 8
    mask = nn.functional.pad(support.matrix(n)[0, 0], (0, 2, 0, 2))
    tiles = mask.view(6, size, 6, size).any(3).any(1)
    counted = support.tiles(n, n, size).state[0, 0] != EMPTY
    yield claim(
        "Per-answer log-probs",
        "difference of the chosen answer's log-probability",
        gap(one_c, two_c),
    ).within(1e-5, "a causal pass of its own", because=CATALOGUE)
    yield claim(
        "Per-answer log-probs",
        "difference of the rejected answer's log-probability",
        gap(one_r, two_r),
    ).within(1e-5, "a causal pass of its own", because=CATALOGUE)
    yield claim("Per-answer log-probs", "largest difference of gradients", gradients).within(
        1e-5, "two causal passes", because=CATALOGUE
    )
    yield claim(
        "perturbing chosen", "change of the rejected answer's log-probability", gap(one_r, other_r)
    ).within(1e-12, "none", because=FLOAT64)
    yield claim("block-mask count", "tiles counted", int(counted.sum())).equals(
        int(tiles.sum()), "tiles of the explicit mask"
    )
    yield claim("tokens processed", "tokens of one pass", rows).equals(
        len(prompt) + len(chosen) + len(rejected), "p + c + r"
    )
