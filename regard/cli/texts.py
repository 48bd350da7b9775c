"""Models of text, as commands load them."""

from __future__ import annotations

from typing import Any


def text_model(name: str | None, revision: str | None, otherwise: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer, without a bar of its own; `otherwise` helps who has none."""
    from regard.core.errors import CapabilityError, fail, need
    from regard.models.loading import load

    need("transformers", "hf", "loads models").utils.logging.disable_progress_bar()
    model, tokenizer = load(name, revision)
    if tokenizer is None:
        fail(
            CapabilityError, "model", f"{name}, which has no tokenizer", "a model of text",
            otherwise,
        )  # fmt: skip
    return model.float(), tokenizer
