"""Inputs of `regard see`: text, a picture, or both, prepared by the processor of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regard.core.errors import CapabilityError, RuleError, fail, need
from regard.core.files import FileError, need_plain


def picture_at(path: Path) -> Any:
    """Open and decode a picture, so that a damaged one fails here."""
    need("PIL", "hf", "reads pictures")
    from PIL import Image

    try:
        return Image.open(need_plain(path)).convert("RGB")
    except FileError as error:
        fail(RuleError, "--image", f"{path} ({error.got})", "a picture", "name a PNG or JPEG file")
    except Exception as error:  # a reader of pictures has errors of each format
        said = getattr(error, "strerror", None) or type(error).__name__
        fail(RuleError, "--image", f"{path} ({said})", "a picture", "name a PNG or JPEG file")


def modalities(config: Any) -> set[str]:
    """Return what a model of this config reads: text, images, or both.

    >>> from types import SimpleNamespace
    >>> sorted(modalities(SimpleNamespace(vision_config={}, text_config={})))
    ['image', 'text']
    """
    found = set()
    if hasattr(config, "vision_config"):
        found |= {"image", "text"}
    elif hasattr(config, "patch_size") or hasattr(config, "num_channels"):
        found.add("image")
    if getattr(config, "vocab_size", None) and "image" not in found:
        found.add("text")
    return found


def need_modality(config: Any, text: str | None, picture: Any, model: str | None) -> None:
    """Raise unless a model accepts the given inputs, and has all it needs."""
    reads = modalities(config)
    named = model or "the demo model"
    if picture is not None and "image" not in reads:
        fail(
            CapabilityError, "--image", f"a picture for {named} ({config.model_type})",
            "a vision model", "pass text, or name a vision model",
        )  # fmt: skip
    if text is not None and reads == {"image"}:
        fail(
            CapabilityError, "--text", f"text for {named} ({config.model_type})",
            "a language model", "pass a picture: --image FILE",
        )  # fmt: skip
    if picture is None and "image" in reads and (text is None or "text" not in reads):
        more = ", and --text with it" if len(reads) > 1 else ""
        fail(
            CapabilityError, "--image", f"no picture for {named} ({config.model_type})",
            "a picture: it is a vision model", f"pass --image FILE{more}",
        )  # fmt: skip


def inputs_of(
    model: str | None, revision: str | None, text: str | None, picture: Any
) -> tuple[Any, np.ndarray | None]:
    """Return the inputs, and the picture as uint8 [rows, columns, 3] or None."""
    if picture is None:
        return text, None
    transformers = need("transformers", "hf", "prepares pictures for models")
    kind = transformers.AutoImageProcessor if text is None else transformers.AutoProcessor
    try:
        processor = kind.from_pretrained(model, revision=revision, trust_remote_code=False)
        if text is None:
            inputs = dict(processor(picture, return_tensors="pt"))
        else:
            prompt = prompt_of(processor, text)
            inputs = dict(processor(images=picture, text=prompt, return_tensors="pt"))
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        fail(
            CapabilityError, "model", f"{model}, whose processor failed ({first})",
            "one that prepares a picture" + (" beside text" if text is not None else ""),
            "prepare the inputs in Python, and pass them to regard.see",
        )  # fmt: skip
    side = inputs["pixel_values"].shape[-2:]
    return inputs, np.asarray(picture.resize((side[1], side[0])), np.uint8)


def prompt_of(processor: Any, text: str) -> str:
    """Return the text with a placeholder for one picture, as the processor writes it."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        said = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return str(said)
    mark = getattr(processor, "image_token", None)
    return text if mark is None or mark in text else f"{mark}\n{text}"
