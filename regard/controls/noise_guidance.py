"""Guidance by a control: add or subtract the change that its edits make to a model's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.controls.strength import PerRow, PerStep, Strength, for_rows
from regard.core.errors import CapabilityError, fail, shape_of
from regard.models.forward import told_branches
from regard.models.wrap import Around


class NoiseGuidance(Around):
    """Wrap the forward of a model: run it without and with a control, and mix both.

    Where branches are known, the difference in the control's branch is added to every branch: the
    pipeline's sum of branches then has it once, whatever its guidance scale.
    """

    order = -1  # outside the wrapper that records forwards, so that both runs are recorded

    def __init__(self, steering: Any) -> None:
        super().__init__()
        self.steering = steering

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model without and with the control, and mix."""
        one = self.steering
        if one.paused:
            return plain(*args, **kwargs)
        one.paused = True
        try:
            base = plain(*args, **kwargs)
        finally:
            one.paused = False
        edited = plain(*args, **kwargs)
        control = one.control
        return mixed(base, edited, control.guidance, told_branches() or (), control.branch)


def mixed(
    base: Any, edited: Any, strength: Strength, branches: tuple[str, ...] = (),
    branch: str | None = None,
) -> Any:  # fmt: skip
    """Return base + strength (edited - base), for tensors [b, ...], tuples or outputs of diffusers.

    >>> mixed(torch.zeros(2), torch.ones(2), 3.0).tolist()
    [3.0, 3.0]
    """
    if isinstance(base, tuple):
        return (mixed(base[0], edited[0], strength, branches, branch), *base[1:])
    if hasattr(base, "sample"):
        return type(base)(sample=mixed(base.sample, edited.sample, strength, branches, branch))
    if not isinstance(base, Tensor):
        fail(
            CapabilityError, "guidance", shape_of(base), "a model that returns a tensor, a tuple "
            "or an output with a `sample`", "use a control that edits attention alone",
        )  # fmt: skip
    if isinstance(strength, PerStep):
        fail(
            CapabilityError, "strength", "one for each step", "a number, or one for each row, "
            "where it is guidance", "choose the steps: where={'steps': range(10)}",
        )  # fmt: skip
    number: Any = strength
    if isinstance(strength, PerRow):
        number = for_rows(strength, base.shape[0], base, len(branches) or 1).to(base)
        number = number.view(-1, *(1,) * (base.dim() - 1))
    apart = edited - base
    own = [i for i, x in enumerate(branches) if branch is not None and x.startswith(branch)]
    if len(branches) > 1 and own:
        apart = torch.cat([apart.chunk(len(branches))[own[0]]] * len(branches))
    made: Tensor = base + number * apart
    return made
