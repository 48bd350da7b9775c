"""Load models for commands, and check their configs before their weights are read."""

from __future__ import annotations

from typing import Any

from regard.core.errors import CapabilityError, ValueRangeError, fail, need


def quiet_transformers() -> Any:
    """Import transformers without its progress bars and log lines."""
    transformers = need("transformers", "hf", "loads models")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    need("huggingface_hub", "hf", "finds models").utils.logging.set_verbosity_error()
    return transformers


def config_of(name: str | None, revision: str | None) -> Any:
    """Read the config of a model, without its weights."""
    from regard.models.loading import configuration

    if revision is not None and not (name and revision.strip()):
        got = repr(revision) if name else f"{revision!r} of the model that ships"
        fail(
            ValueRangeError, "--revision", got, "a branch, tag or commit of a model on the hub",
            "name the model as well, or leave --revision out",
        )  # fmt: skip
    quiet_transformers()
    return configuration(name, revision)


def need_decoder(config: Any, otherwise: str) -> None:
    """Raise unless a model of this config generates text."""
    from regard.models.loading import generates

    if not generates(config):
        fail(
            CapabilityError, "model", f"{config.model_type}, which generates no text of its own",
            "a decoder that generates text", otherwise,
        )  # fmt: skip


def text_model(name: str | None, revision: str | None, otherwise: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer; `otherwise` is the fix named where there is no tokenizer."""
    import torch

    from regard.models.loading import load

    quiet_transformers()
    model, tokenizer = load(name, revision)
    if tokenizer is None:
        fail(
            CapabilityError, "model", f"{name}, which has no tokenizer", "a model of text",
            otherwise,
        )  # fmt: skip
    # A model read from a file of few bits is in float32, and refuses to be cast.
    whole = all(x.dtype == torch.float32 for x in model.parameters())
    return model if whole else model.float(), tokenizer
