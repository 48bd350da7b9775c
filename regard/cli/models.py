"""Models as commands load them: what can be told of one before its weights are read."""

from __future__ import annotations

from typing import Any

from regard.core.errors import CapabilityError, ValueRangeError, fail, need


def quiet_transformers() -> Any:
    """Import transformers without its bar and its reports, which would stand above ours."""
    transformers = need("transformers", "hf", "loads models")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    need("huggingface_hub", "hf", "finds models").utils.logging.set_verbosity_error()
    return transformers


def config_of(name: str | None, revision: str | None) -> Any:
    """Read the config of a model, which is there at once; its weights are not."""
    from regard.models.loading import configuration

    if revision is not None and not (name and revision.strip()):
        got = repr(revision) if name else f"{revision!r} of the model that ships"
        fail(
            ValueRangeError, "--revision", got, "a branch, tag or commit of a model on the hub",
            "name the model as well, or leave --revision out",
        )  # fmt: skip
    quiet_transformers()
    return configuration(name, revision)


def positions_of(config: Any) -> int | None:
    """How many tokens a model was made for; None where its config names no bound."""
    from regard.probes.looking import positions_of as found

    return found(config)


def need_decoder(config: Any, otherwise: str) -> None:
    """Raise unless a model of this config says what comes next."""
    from regard.models.loading import generates

    if not generates(config):
        fail(
            CapabilityError, "model", f"{config.model_type}, which generates no text of its own",
            "a decoder that generates text", otherwise,
        )  # fmt: skip


def text_model(name: str | None, revision: str | None, otherwise: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer, without a bar of its own; `otherwise` helps who has none."""
    from regard.models.loading import load

    quiet_transformers()
    model, tokenizer = load(name, revision)
    if tokenizer is None:
        fail(
            CapabilityError, "model", f"{name}, which has no tokenizer", "a model of text",
            otherwise,
        )  # fmt: skip
    return model.float(), tokenizer


__all__ = [
    "config_of", "need_decoder", "positions_of", "quiet_transformers", "text_model",
]  # fmt: skip
