"""What a model is shown while it is looked at, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.hashes import hash_of


@dataclass(frozen=True)
class Reading:
    """Inputs of one forward, and what is known of their tokens.

    `tokens` [b, n] are ids, `words` how they read, `real` bool [b, n] tells tokens from padding.
    `period` is set where the same stretch is shown again and again, `spans` names places (a needle,
    an answer, an instruction), `grid` is that of the patches of an image. `whole` is how many
    tokens the text had before it was cut to what the model can read.

    >>> Reading({"input_ids": torch.tensor([[0, 5, 6, 5, 6]])}, period=2).tokens.shape
    torch.Size([1, 5])
    """

    inputs: Mapping[str, Any]
    words: list[str] = field(default_factory=list)
    period: int | None = None
    spans: Mapping[str, slice] = field(default_factory=dict)
    grid: tuple[int, ...] | None = None
    whole: int | None = None

    @property
    def digest(self) -> str:
        """Hash what the model is given: its tensors, and plain values.

        >>> a, b = (Reading({"input_ids": torch.tensor([[i]])}) for i in (3, 4))
        >>> a.digest == a.digest, a.digest == b.digest
        (True, False)
        """
        plain = Tensor | str | bool | int | float
        return hash_of({str(k): x for k, x in self.inputs.items() if isinstance(x, plain)})

    @property
    def cut(self) -> str:
        """Return that the text was cut, and to what; empty where it was not.

        >>> Reading({"input_ids": torch.zeros(1, 8).long()}, whole=20).cut
        'only the first 8 of 20 tokens were read: the model was made for 8 positions'
        """
        if self.whole is None or self.tokens is None:
            return ""
        read = self.tokens.shape[1]
        return (
            f"only the first {read:,} of {self.whole:,} tokens were read: the model was made for "
            f"{read:,} positions"
        )

    @property
    def tokens(self) -> Tensor | None:
        """Ids [b, n], where the model is shown ids."""
        found = self.inputs.get("input_ids")
        return found if isinstance(found, Tensor) else None

    @property
    def real(self) -> Tensor | None:
        """Which tokens are no padding, bool [b, n]."""
        found = self.inputs.get("attention_mask")
        return found.bool() if isinstance(found, Tensor) and found.dim() == 2 else None


NOTHING = Reading({})


def counted_rows(reading: Reading, call: Call) -> Tensor:
    """Return which queries count [b or 1, 1, n]: all but padding."""
    real = reading.real
    if real is None or real.shape != (call.b, call.n):
        return torch.ones(1, 1, call.n, dtype=torch.bool, device=call.q.device)
    return real.to(call.q.device)[:, None]
