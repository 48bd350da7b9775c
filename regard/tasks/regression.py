"""In-context linear regression: infer a weight vector from examples, and apply it to a new x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.run.api import attend
from regard.tasks.base import Batch, Kind, Numbers, Task, need_integer
from regard.tasks.registry import register


@register("icl_regression")
@dataclass(frozen=True, kw_only=True)
class InContextRegression(Task):
    """Examples (x, w·x) of one hidden w per row, then a new x: what is its w·x?

    A token is x joined with its label, 0 at the question. `noise` is added to labels; the oracle is
    the Bayes estimate, which is exact without noise if there are at least `width` examples.

    >>> InContextRegression(examples=8, width=3).batch(2).x.shape
    torch.Size([2, 9, 4])
    """

    patterns = ("cs", "ns")
    width: int = 4
    examples: int = 16
    noise: float = 0.0

    def __post_init__(self) -> None:
        need_integer("width", self.width)
        need_integer("examples", self.examples)
        if self.noise < 0:
            fail(ValueRangeError, "noise", self.noise, "0 or more", "pass 0.1, for example")

    @property
    def inputs(self) -> Kind:
        return Numbers(self.width + 1)

    @property
    def outputs(self) -> Kind:
        return Numbers(1)

    @property
    def longest(self) -> int:
        return self.examples + 1

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = self.examples + 1
        w = torch.randn(size, self.width, 1, generator=random) / self.width**0.5
        x = torch.randn(size, n, self.width, generator=random)
        label = x @ w  # [b, n, 1]
        noisy = label + self.noise * torch.randn(label.shape, generator=random)
        noisy[:, -1] = 0
        asked = torch.zeros(size, n, dtype=torch.bool)
        asked[:, -1] = True
        return Batch(torch.cat((x, noisy), 2), label, asked)

    def oracle(self, batch: Batch) -> Tensor:
        x, label = batch.x[..., :-1].double(), batch.x[:, :-1, -1:].double()
        shown = x[:, :-1]
        # w has variance 1 / width, so that the prior weighs width * noise² against the examples.
        prior = max(self.width * self.noise**2, 1e-9) * torch.eye(self.width, dtype=torch.double)
        w = torch.linalg.solve(shown.mT @ shown + prior, shown.mT @ label)
        return (x @ w).to(batch.y.dtype)


@method("icl_multihead_regression")
class RegressionHeads(nn.Module):
    """One layer of position-free softmax heads that reads examples, with weights to interpret.

    `y = sum_h O_h V_h Z softmax(Z^T K_h^T Q_h z)`, over the examples Z [b, n, width + 1] and the
    question z; the answer is the last entry. `patterns()` interprets the trained weights.

    >>> heads = RegressionHeads(width=3, heads=2)
    >>> heads(torch.randn(5, 9, 4)).shape
    torch.Size([5])
    """

    def __init__(self, width: int, heads: int, start: float = 0.02) -> None:
        super().__init__()
        size = (heads, width + 1, width + 1)
        self.width = width
        self.query, self.key, self.value, self.out = (
            nn.Parameter(start * torch.randn(size)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Answer at the last token of x [b, n, width + 1] by attention to those before it."""
        if x.dim() != 3 or x.shape[2] != self.width + 1:
            fail(ShapeError, "x", shape_of(x), f"[b, n, {self.width + 1}]", "put labels last")
        shown, asked = x[:, None, :-1], x[:, None, -1:]
        q, k, v = asked @ self.query, shown @ self.key, shown @ self.value
        # The weights learn the scale of scores: undo the one of attention.
        seen = attend(q * q.shape[-1] ** 0.5, k, v)  # [b, h, 1, width + 1]
        answer: Tensor = (seen @ self.out).sum(1)[:, 0, -1]
        return answer

    def patterns(self) -> dict[str, list[float]]:
        """Return, by head, how far its weights are from the predicted pattern, and its scale.

        - `off`: the fraction of the energy of a head's key-query block outside of a multiple of the
          identity on x
        - `scale`: that multiple, w
        - `off value`: the fraction of the energy of the value block outside of its label entry
        - `value`: that entry, mu
        """
        d = self.width
        kq = (self.query @ self.key.mT).detach()
        ov = (self.value @ self.out).detach()
        w = kq[:, :d, :d].diagonal(dim1=1, dim2=2).mean(1)
        wanted = torch.zeros_like(kq)
        wanted[:, :d, :d] = w[:, None, None] * torch.eye(d)
        # The label at the question is 0, so its row has no effect.
        energy = kq[:, :d].square().sum((1, 2))
        off = (kq - wanted)[:, :d].square().sum((1, 2)) / energy
        mu = ov[:, d, d]
        # Only the last column of the value block reaches the answer.
        off_value = 1 - mu.square() / ov[:, :, d].square().sum(1)
        return {"off": off.tolist(), "scale": w.tolist(), "off value": off_value.tolist(),
                "value": mu.tolist()}  # fmt: skip


def debiased_step(x: Tensor, rate: float) -> Tensor:
    """Take one step of gradient descent on centered examples: rate x_q · mean((x - mean x) y).

    >>> debiased_step(torch.randn(5, 9, 4), 1.0).shape
    torch.Size([5])
    """
    shown, labels, asked = x[:, :-1, :-1], x[:, :-1, -1:], x[:, -1, :-1]
    step: Tensor = ((shown - shown.mean(1, keepdim=True)) * labels).mean(1)
    return rate * (asked * step).sum(1)
