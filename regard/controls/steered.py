"""A model that is steered, until it is detached."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from regard.controls.receipt import Receipt
from regard.controls.steering import Steering
from regard.models.attach import Attached


class Steered:
    """A steered model, until `detach()` or the end of the `with`; `receipt` has what changed."""

    def __init__(self, attached: Attached, stage: Steering) -> None:
        self.attached, self.stage = attached, stage

    @property
    def model(self) -> Any:
        """Return the model that was passed in."""
        return self.attached.model

    @property
    def control(self) -> Any:
        """Return the active control."""
        return self.stage.control

    @property
    def receipt(self) -> Receipt:
        """Return what the control has changed so far."""
        return self.stage.receipt

    def detach(self) -> None:
        """Restore the model; raise `NothingMoved` if the control changed nothing."""
        self.attached.detach()
        if self.stage.must_move:
            self.receipt.need_effect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.detach()
        else:
            self.attached.detach()

    @torch.no_grad()
    def compare(self, **inputs: Any) -> dict[str, float]:
        """Run the model with and without the control, and record in the receipt how logits differ.

        `kl` is the mean divergence (nats) of next-token distributions, unsteered from steered;
        `largest` is the largest difference of a logit, `agree` the share of equal next tokens.
        """
        ours = self.model(**inputs).logits.float()
        self.stage.paused = True
        try:
            theirs = self.model(**inputs).logits.float()
        finally:
            self.stage.paused = False
        self.receipt.logits = logit_difference(theirs, ours, inputs.get("attention_mask"))
        return self.receipt.logits

    def __repr__(self) -> str:
        return f"Steered({self.stage.name} on {type(self.model).__name__})"


def logit_difference(old: Tensor, new: Tensor, real: Tensor | None = None) -> dict[str, float]:
    """Compare logits [b, n, vocabulary] of two runs on the same tokens.

    >>> x = torch.randn(1, 3, 5)
    >>> logit_difference(x, x)
    {'kl': 0.0, 'largest': 0.0, 'agree': 1.0}
    """
    a, b = old.log_softmax(-1), new.log_softmax(-1)
    kl = (a.exp() * (a - b)).sum(-1)
    agree = (a.argmax(-1) == b.argmax(-1)).float()
    largest = (new - old).abs().amax(-1)
    if real is not None and real.shape == kl.shape:
        kl, agree, largest = (x[real.bool()] for x in (kl, agree, largest))
    return {"kl": float(kl.mean()), "largest": float(largest.max()), "agree": float(agree.mean())}
