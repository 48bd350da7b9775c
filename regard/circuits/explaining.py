"""Explainers: scores for every token of one input, by how much the answer depends on it.

A `Question` holds the embeddings of one input and a function that scores any batch of such
embeddings; an explainer gives one number for each token. They need only the values of that
function, and, for attention, maps that the user passes.

| name | score of token t | source |
|---|---|---|
| `gradient_x_input` | x_t . df/dx_t | Simonyan 2013, with the input as a factor |
| `integrated_gradients` | (x_t - x'_t) . mean of df/dx_t from x' to x | Sundararajan 2017 |
| `gradient_shap` | the same over random ends and places of that way | Lundberg 2017 |
| `occlusion` | f(x) - f(x, token t put at the baseline) | Zeiler 2013 |
| `lime` | slope of token t in a linear model of f on random deletions | Ribeiro 2016 |
| `deep_lift` | captum's, for models of modules | Shrikumar 2017 |
| `chance` | random numbers: what any other must beat | |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, need, shape_of

Scoring = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Question:
    """One input to be explained: `embeddings` [n, d]; `score` maps any [b, n, d] to numbers [b].

    `baseline` ([n, d] or [d], zeros unless given) is what a token is when it is not there. `seed`
    serves the explainers that draw.

    >>> words = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    >>> question = Question(lambda x: x.sum((1, 2)), words)
    >>> occlusion(question).tolist()
    [1.0, 3.0, 0.0]
    """

    score: Scoring
    embeddings: Tensor
    baseline: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        x = self.embeddings
        if not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point():
            fail(
                ShapeError, "embeddings", shape_of(x), "floating-point embeddings [n, d]",
                "pass the embeddings of one input",
            )  # fmt: skip
        base = self.baseline
        if base is not None and base.shape not in (x.shape, x.shape[-1:]):
            fail(
                ShapeError, "baseline", shape_of(base), f"{list(x.shape)} or [{x.shape[-1]}]",
                "give every token, or all, what they are when they are not there",
            )  # fmt: skip

    @property
    def absent(self) -> Tensor:
        """What each token is when it is not there [n, d]."""
        x = self.embeddings
        return torch.zeros_like(x) if self.baseline is None else self.baseline.expand_as(x)

    def kept(self, keep: Tensor) -> Tensor:
        """Score the input with some tokens alone: `keep` bool [b, n] to [b]."""
        with torch.no_grad():
            return self.score(torch.where(keep[..., None], self.embeddings, self.absent))

    def draw(self) -> torch.Generator:
        """Return a generator of the question's own."""
        return torch.Generator().manual_seed(self.seed)

    def slopes(self, x: Tensor) -> Tensor:
        """Return the gradient of the score at x [b, n, d]."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.score(x).sum(), x)[0]


Explainer = Callable[[Question], Tensor]


def question_of(model: Any, ids: Tensor, target: int, *, position: int | None = -1) -> Question:
    """Ask why a model of transformers scores `target` for ids [n]: its logit at a position.

    With `position=None` the model is a classifier, whose logits are [b, classes].
    """
    x = model.get_input_embeddings()(ids[None]).detach()[0]

    def score(embeddings: Tensor) -> Tensor:
        logits = model(inputs_embeds=embeddings).logits
        return logits[:, target] if position is None else logits[:, position, target]

    return Question(score, x)


def gradient_x_input(question: Question) -> Tensor:
    """Return the gradient times input, summed over channels [n]."""
    x = question.embeddings
    return (x * question.slopes(x[None])[0]).sum(-1)


def integrated_gradients(question: Question, steps: int = 64) -> Tensor:
    """Gradients along the straight way from the baseline, at the middles of `steps` steps [n].

    Complete: over all tokens they sum to f(x) - f(baseline), but for the steps.
    """
    if steps < 1:
        fail(ValueRangeError, "steps", steps, "at least 1", "take 64")
    way = question.embeddings - question.absent
    at = (torch.arange(steps, dtype=way.dtype, device=way.device) + 0.5) / steps
    slopes = question.slopes(question.absent + at[:, None, None] * way)
    return (way * slopes.mean(0)).sum(-1)


def gradient_shap(question: Question, draws: int = 64, noise: float = 0.1) -> Tensor:
    """Return gradients at random places between noisy inputs and the baseline [n]."""
    x, draw = question.embeddings, question.draw()
    shape = (draws, *x.shape)
    ends = x + noise * x.std() * torch.randn(shape, generator=draw).to(x)
    at = torch.rand(draws, 1, 1, generator=draw).to(x)
    way = ends - question.absent
    return (way * question.slopes(question.absent + at * way)).mean(0).sum(-1)


def occlusion(question: Question) -> Tensor:
    """Return how much the score falls without each token [n]."""
    n = len(question.embeddings)
    keep = ~torch.eye(n + 1, dtype=torch.bool, device=question.embeddings.device)[:, :n]
    scores = question.kept(keep)  # the last row keeps everything
    return scores[-1] - scores[:-1]


def lime(
    question: Question, draws: int = 1000, width: float = 0.25, penalty: float = 1e-3
) -> Tensor:
    """Return slopes of a ridge regression of the score on random deletions [n].

    Draws count by exp(-distance^2 / width^2), the distance being that of the cosine to "all kept".
    """
    x = question.embeddings
    n = len(x)
    keep = torch.rand(draws, n, generator=question.draw()) < 0.5
    keep[0] = True
    y = question.kept(keep.to(x.device)).double().cpu()
    apart = 1 - (keep.sum(1) / n).sqrt()  # 1 - cos(keep, ones)
    weight = torch.exp(-(apart.double() ** 2) / width**2)
    z = torch.cat([keep.double(), torch.ones(draws, 1, dtype=torch.float64)], 1)
    ridge = penalty * torch.eye(n + 1, dtype=torch.float64)
    ridge[n, n] = 0.0
    slopes = torch.linalg.solve(z.T @ (weight[:, None] * z) + ridge, z.T @ (weight * y))
    return slopes[:n].to(x)


def deep_lift(module: nn.Module) -> Explainer:
    """Build an explainer of captum's DeepLIFT for a module that maps [b, n, d] to [b].

    Its rule is written on modules, so that a plain function cannot be explained by it.
    """
    captum = need("captum.attr", "explain", "knows DeepLIFT")
    if not isinstance(module, nn.Module):
        fail(RuleError, "module", shape_of(module), "an nn.Module", "wrap the function in a module")

    def explain(question: Question) -> Tensor:
        x, base = question.embeddings[None], question.absent[None]
        found = captum.DeepLift(module).attribute(x, base)
        return found.detach()[0].sum(-1)

    return explain


def chance(question: Question) -> Tensor:
    """Return random scores [n]."""
    return torch.randn(len(question.embeddings), generator=question.draw())


EXPLAINERS: dict[str, Explainer] = {
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "gradient_shap": gradient_shap,
    "occlusion": occlusion,
    "lime": lime,
    "chance": chance,
}
