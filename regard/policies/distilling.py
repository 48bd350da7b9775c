"""Distill a model into its shrunk form: the outputs of attention, and of the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.checking import tensors_of
from regard.models.stage import Stage
from regard.policies.registry import make_policies
from regard.policies.shrinking import Shrinking


class Outputs(Stage):
    """Record the output of each call of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = []

    def after(self, call: Call, partial: Result) -> Result:
        """Record the output."""
        self.held.append(partial.out)
        return partial


def distill(
    model: Any,
    policies: Any,
    inputs: Sequence[Mapping[str, Any]],
    *,
    keep: Any = 0.25,
    steps: int = 100,
    rate: float = 1e-4,
    teacher: Any = None,
) -> Iterator[float]:
    """Fine-tune `model` under policies towards a `teacher` (a copy made before), step by step.

    loss = sum over layers of the mean squared difference of attention outputs
           + the mean squared difference of the outputs of the model

    `inputs` are arguments of forwards, used in turn. Yields the loss of each step.
    (Efficient-vDiT, Ding et al. 2025)

        for loss in distill(transformer, made, inputs, steps=1000): ...
    """
    teacher = copy.deepcopy(model) if teacher is None else teacher
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    shrinking = Shrinking(make_policies(policies), keep)
    ours, theirs = Outputs(), Outputs()
    with attach(teacher, [theirs], check=False), attach(model, [ours, shrinking], check=False):
        for step in range(steps):
            ours.held, theirs.held = [], []
            one = inputs[step % len(inputs)]
            with torch.no_grad():
                aim = next(tensors_of(teacher(**one)))
            loss = (next(tensors_of(model(**one))) - aim).square().mean()
            for a, b in zip(ours.held, theirs.held, strict=True):
                loss = loss + (a - b).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield float(loss.detach())
