"""Log-probabilities of texts read one token at a time: bits per byte, and KL between models."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Spoken:
    """What a model, as it is when it is first asked, says of the last `steps` tokens of ids [b, n].

    They are read one at a time after the rest, as in decoding.
    """

    def __init__(self, model: Any, tokenizer: Any, ids: Tensor, steps: int) -> None:
        self.model, self.tokenizer, self.ids, self.steps = model, tokenizer, ids, steps

    @property
    def bits(self) -> float:
        """Bits a byte of those tokens."""
        return self._read[0]

    @property
    def words(self) -> Tensor:
        """Log-probabilities of all words at each step [b, steps, vocabulary], in half precision."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[float, Tensor]:
        ids, first = self.ids, self.ids.shape[1] - self.steps
        nats, read = torch.zeros(()), list[Tensor]()
        with torch.no_grad():
            out = self.model(ids[:, :first], use_cache=True)
            for step in range(first, ids.shape[1]):
                wanted = ids[:, step : step + 1]
                logp = out.logits[:, -1].float().log_softmax(-1)
                read.append(logp.half())
                nats += -logp.gather(1, wanted).sum()
                out = self.model(wanted, past_key_values=out.past_key_values, use_cache=True)
        size = sum(len(self.tokenizer.decode(row[first:]).encode()) for row in ids)
        return float(nats) / math.log(2) / size, torch.stack(read, 1)


def divergence(full: Tensor, own: Tensor) -> float:
    """Return the mean KL(full || own), nats, of log-probabilities [b, steps, vocabulary].

    >>> even = torch.tensor([[[0.5, 0.5]]]).log()
    >>> divergence(even, even), round(divergence(even, torch.tensor([[[0.9, 0.1]]]).log()), 4)
    (0.0, 0.5108)
    """
    total = 0.0
    for a, b in zip(full, own, strict=True):  # a row at a time, in single precision
        a, b = (x.float().log_softmax(-1) for x in (a, b))
        said = a.isfinite()  # a word that the full model never says adds nothing
        total += float(torch.where(said, a.exp() * (a - b), 0.0).sum())
    return total / (full.shape[0] * full.shape[1])
