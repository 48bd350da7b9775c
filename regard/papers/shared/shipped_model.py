"""The model that ships, with a text to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.bench.shrunk_models import haystack
from regard.models.loading import load

TEXT = "def wrap(text, width=70):\n    return text\n\ndef fill(text, width=70):\n    return "


def demo() -> tuple[nn.Module, Tensor]:
    """The model that ships, in float64, and some ids."""
    model, tokenizer = load(None)
    ids: Tensor = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    return model.double(), ids


def trained() -> tuple[Any, Tensor]:
    """The model that ships, in float32, and 8 windows of 192 ids of programs, drawn at random."""
    model, tokenizer = load(None)
    ids: Tensor = tokenizer(haystack(), return_tensors="pt", verbose=False)["input_ids"][0]
    first = torch.randint(0, len(ids) - 192, (8,))
    return model.float(), torch.stack([ids[i : i + 192] for i in first.tolist()])


@torch.no_grad()
def loss_of(model: Any, ids: Tensor) -> float:
    """Mean cross-entropy of the next token, nats."""
    return float(model(ids, labels=ids).loss)
