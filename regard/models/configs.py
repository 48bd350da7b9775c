"""What configs of transformers hold, read without asking them: an attribute takes them long."""

from __future__ import annotations

from typing import Any


def stored(config: Any) -> dict[str, Any]:
    """Return the instance dictionary of a config; an empty one where it has none.

    >>> class Config:
    ...     def __init__(self): self.heads = 4
    ...     def __getattribute__(self, name): raise RuntimeError("asked")
    >>> stored(Config()), stored(None)
    ({'heads': 4}, {})
    """
    try:
        return object.__getattribute__(config, "__dict__")  # type: ignore[no-any-return]
    except AttributeError:
        return {}


def asks_for_weights(config: Any) -> bool:
    """Whether a config has attention return its weights.

    >>> asks_for_weights(None)
    False
    """
    own = stored(config)  # later versions keep it behind a property
    if "_output_attentions" in own:
        return bool(own["_output_attentions"])
    return bool(getattr(config, "output_attentions", False))
