"""What instruction tuning changes: important prompt words, word pairs, feed-forward concepts.

Three measures of Wu 2023, each for a model before and after: the density of attribution from prompt
to response, pairs of words that queries and keys bring together, and words that the principal
directions of feed-forward values say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


def left_out(model: Any, prompt: Tensor, response: Tensor) -> Tensor:
    """I[m, n] = p(y_n | all) - p(y_n | all but x_m), for ids prompt [m] and response [n].

    One forward for each word of the prompt.
    """
    whole = _said(model, prompt, response)
    rows = []
    for m in range(len(prompt)):
        rest = torch.cat([prompt[:m], prompt[m + 1 :]])
        rows.append(whole - _said(model, rest, response))
    return torch.stack(rows)


def _said(model: Any, prompt: Tensor, response: Tensor) -> Tensor:
    """Return the probability of each word of a response [n]."""
    ids = torch.cat([prompt, response])[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.softmax(-1)[torch.arange(len(response)), response]


def blanked(model: Any, prompt: Tensor, response: Tensor) -> Tensor:
    """I[m, n] = p(y_n | all) - p(y_n | the embedding of x_m put at 0): no other word moves."""
    ids = torch.cat([prompt, response])[None]
    x = model.get_input_embeddings()(ids).detach()
    rows = x.repeat(len(prompt) + 1, 1, 1)
    place = torch.arange(len(prompt))
    rows[place, place] = 0.0  # the last row keeps everything
    with torch.no_grad():
        logits = model(inputs_embeds=rows).logits[:, len(prompt) - 1 : -1].float()
    told = logits.softmax(-1)[:, torch.arange(len(response)), response]
    return told[-1] - told[:-1]


def by_gradient(model: Any, prompt: Tensor, response: Tensor) -> Tensor:
    """`blanked` to first order: the gradient of p(y_n) at the embedding of x_m, times it.

    Where the first thing a model does is a norm of size alone (RMSNorm), the gradient along the
    embedding nearly vanishes, and this is uninformative.
    """
    ids = torch.cat([prompt, response])[None]
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.enable_grad():
        logits = model(inputs_embeds=x).logits[0, len(prompt) - 1 : -1].float()
        told = logits.softmax(-1)[torch.arange(len(response)), response]
        slopes = [torch.autograd.grad(p, x, retain_graph=True)[0][0] for p in told]
    return torch.stack([(s * x.detach()[0]).sum(-1)[: len(prompt)] for s in slopes], 1)


@method(
    "instruction_tuning_shift",
    call="import torch\n"
    "from regard.analysis.tuning_shift import density\n"
    "importance = torch.rand(12, 8)  # by left_out(model, prompt, response), or by_gradient\n"
    "print(density(importance))",
)
def density(importance: Tensor, *, levels: int = 10, least: int = 7, power: float = 4.0) -> Tensor:
    """Return how many words of the response each word of the prompt matters to [m], from I [m, n].

    S_mn = ceil(levels I_mn / max_m I_mn), 0 below `least` and where I is not positive; then
    a_m = |S_m|_1 / |S_m|_power: 1 where one word depends on it, n^(1 - 1/power) where all do alike.

    >>> density(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.9, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]))
    tensor([2.8284, 1.0000, 0.0000])
    """
    if importance.dim() != 2:
        fail(
            ShapeError, "importance", shape_of(importance), "[prompt, response]",
            "give one number for each pair of words",
        )  # fmt: skip
    if not 1 <= least <= levels or power <= 1:
        fail(
            ValueRangeError, "least, levels, power", (least, levels, power),
            "1 <= least <= levels and power over 1", "take 7, 10 and 4",
        )  # fmt: skip
    top = importance.amax(0)
    scaled = torch.ceil(levels * importance / top.clamp_min(1e-30))
    s = torch.where((scaled >= least) & (importance > 0), scaled, 0.0)
    return s.sum(1) / s.norm(power, dim=1).clamp_min(1e-30)


def word_pairs(
    w_q: Tensor, w_k: Tensor, embedding: Tensor, *, vectors: Tensor | None = None, top: int = 100,
    least: float = 0.3,
) -> set[tuple[int, int]]:  # fmt: skip
    """Return pairs (a, b) of words that a head's channels bring together: w_q, w_k [d, channels].

    For each channel the `top` words by embedding w_q and by embedding w_k [words, d]; of all pairs
    across the two lists, those whose `vectors` [words, e] (the embedding if None; GloVe, ...)
    have a cosine of at least `least`.
    """
    if w_q.shape != w_k.shape or w_q.shape[0] != embedding.shape[1]:
        fail(
            ShapeError, "w_k", shape_of(w_k), f"[{embedding.shape[1]}, channels], as w_q",
            "give the weights of one head, queries and keys, channels last",
        )  # fmt: skip
    unit = torch.nn.functional.normalize(embedding if vectors is None else vectors, dim=-1)
    top = min(top, len(embedding))
    asking, asked = (embedding @ w_q).topk(top, 0).indices, (embedding @ w_k).topk(top, 0).indices
    found: set[tuple[int, int]] = set()
    for a, b in zip(asking.T, asked.T, strict=True):
        alike = (unit[a] @ unit[b].T >= least).nonzero()
        found |= set(zip(a[alike[:, 0]].tolist(), b[alike[:, 1]].tolist(), strict=True))
    return found


def changed(before: set[Any], after: set[Any]) -> float:
    """Return the share of what is in either that is not in both.

    >>> changed({1, 2}, {2, 3})
    0.6666666666666667
    """
    either = before | after
    return 1 - len(before & after) / len(either) if either else 0.0


def principal_words(
    values: Tensor, embedding: Tensor, *, components: int = 5, top: int = 10
) -> tuple[Tensor, Tensor]:
    """Return words that the principal directions of feed-forward values [d_ff, d] say.

    Gives the words [components, top] with the largest |embedding . direction| on the side where
    most lies, and the share of variance of each component.
    """
    centered = values - values.mean(0)
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    told = embedding @ directions[:components].T  # [words, components]
    side = torch.sign(told.gather(0, told.abs().argmax(0, keepdim=True)))
    share = sizes.square() / sizes.square().sum()
    return (told * side).topk(top, 0).indices.T, share[:components]
