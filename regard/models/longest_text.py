"""How many tokens a model was made for."""

from __future__ import annotations

from typing import Any


def positions_of(config: Any) -> int | None:
    """Return how many tokens a model of this config was made for; None where it names no bound."""
    inner = getattr(config, "get_text_config", None)
    text = config if inner is None else inner()
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def longest(model: Any) -> int:
    """Return the most tokens that a model is shown at once."""
    return positions_of(getattr(model, "config", None)) or 1 << 20
