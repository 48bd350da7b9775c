"""What `regard see` shows a model: text, a picture, or both, as its own processor prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regard.core.errors import CapabilityError, RuleError, fail, need


def picture_at(path: Path) -> Any:
    """Open a picture, whole, so that a damaged one is told here."""
    need("PIL", "hf", "reads pictures")
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except Exception as error:  # a reader of pictures has errors of each format
        said = getattr(error, "strerror", None) or type(error).__name__
        fail(RuleError, "--image", f"{path} ({said})", "a picture", "name a PNG or JPEG file")


def modalities(config: Any) -> set[str]:
    """What a model of this config reads: text, images, or both.

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
    """Raise where a model reads no pictures, or no text, or needs both."""
    reads = modalities(config)
    named = model or "the demo model"
    if picture is not None and "image" not in reads:
        fail(
            CapabilityError, "--image", f"a picture for {named} ({config.model_type})",
            "a model that sees", "show it text, or name a model of images",
        )  # fmt: skip
    if text is not None and reads == {"image"}:
        fail(
            CapabilityError, "--text", f"text for {named} ({config.model_type})",
            "a model that reads", "show it a picture: --image FILE",
        )  # fmt: skip
    if picture is None and "image" in reads and (text is None or "text" not in reads):
        more = ", and --text with it" if len(reads) > 1 else ""
        fail(
            CapabilityError, "--image", f"no picture for {named} ({config.model_type})",
            "a picture, since it sees", f"pass --image FILE{more}",
        )  # fmt: skip


def inputs_of(
    model: str | None, revision: str | None, text: str | None, picture: Any
) -> tuple[Any, np.ndarray | None]:
    """What to show, and the picture as bytes [rows, columns, 3] where there is one."""
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
    """Text with a place for one picture, as the processor writes it."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        said = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return str(said)
    mark = getattr(processor, "image_token", None)
    return text if mark is None or mark in text else f"{mark}\n{text}"


__all__ = ["inputs_of", "modalities", "need_modality", "picture_at", "prompt_of"]
