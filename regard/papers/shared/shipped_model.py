"""The model that ships, with a text to read."""

from __future__ import annotations

from torch import Tensor, nn

from regard.models.loading import load

TEXT = "def wrap(text, width=70):\n    return text\n\ndef fill(text, width=70):\n    return "


def demo() -> tuple[nn.Module, Tensor]:
    """The model that ships, in float64, and some ids."""
    model, tokenizer = load(None)
    ids: Tensor = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    return model.double(), ids
