"""One pass over prompt, chosen and rejected equals two passes, and no answer sees the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.support import Causal, SharedPrefix, Support
from regard.core.tilemap import EMPTY
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.run.api import attend


class _Toy(nn.Module):
    """A two-layer causal language model with learned positions, in float64."""

    def __init__(self, words: int = 17, width: int = 16, longest: int = 64) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(words, width), nn.Embedding(longest, width)
        self.mixes = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, words)
        self.double()

    def forward(self, words: Tensor, places: Tensor, support: Support) -> Tensor:
        """Give log-probabilities [n, words] of the word after each of `words` [n]."""
        x = self.word(words) + self.place(places)
        for mix, out in zip(self.mixes, self.outs, strict=True):
            q, k, v = (y.view(1, len(words), 2, -1).transpose(1, 2) for y in mix(x).chunk(3, -1))
            x = x + out(attend(q, k, v, support)[0].transpose(0, 1).flatten(1))
        return torch.log_softmax(self.head(x), -1)


def _picked(log_p: Tensor, words: Tensor) -> Tensor:
    return log_p.gather(-1, words[:, None]).sum()


def _shared(model: _Toy, prompt: Tensor, answers: list[Tensor]) -> tuple[list[Tensor], int]:
    """Log-probability of each answer, from one pass over the prompt and all answers in a row."""
    p = len(prompt)
    words = torch.cat([prompt, *answers])
    places = torch.cat([torch.arange(p), *(p + torch.arange(len(a)) for a in answers)])
    log_p = model(words, places, SharedPrefix(p, tuple(map(len, answers))))
    found, start = [], p
    for answer in answers:
        # The first word of every answer is predicted where the prompt ends.
        rows = torch.cat([torch.tensor([p - 1]), start + torch.arange(len(answer) - 1)])
        found.append(_picked(log_p[rows], answer))
        start += len(answer)
    return found, len(words)


def _alone(model: _Toy, prompt: Tensor, answer: Tensor) -> Tensor:
    words = torch.cat([prompt, answer])
    log_p = model(words, torch.arange(len(words)), Causal())
    return _picked(log_p[len(prompt) - 1 : -1], answer)


@check(
    "dpo_prefix_sharing",
    beyond=(
        "log-probabilities of answers behind one prompt are made in this check; the library "
        "has the mask"
    ),
)
def prefix_sharing() -> Claims:
    """One pass over prompt, chosen and rejected equals two passes, and no answer sees the other."""
    model = _Toy()
    prompt, chosen, rejected = (torch.randint(0, 17, (n,)) for n in (23, 9, 14))
    (one_c, one_r), rows = _shared(model, prompt, [chosen, rejected])
    two_c, two_r = _alone(model, prompt, chosen), _alone(model, prompt, rejected)
    weights = list(model.parameters())
    # The loss of direct preference optimisation, without its reference model.
    one = torch.autograd.grad(-nn.functional.logsigmoid(0.3 * (one_c - one_r)), weights)
    two = torch.autograd.grad(-nn.functional.logsigmoid(0.3 * (two_c - two_r)), weights)
    gradients = max(gap(a, b) for a, b in zip(one, two, strict=True))
    (_, other_r), _ = _shared(model, prompt, [(chosen + 1) % 17, rejected])

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
