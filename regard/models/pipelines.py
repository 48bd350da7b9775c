"""Pipelines of diffusers: which model denoises, its prompt's tokens, and its guidance branches.

The conditional half of a batch is not guessed: it is the rows that have the embeddings of the
prompt. For text of another shape branches are unknown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, fail, shape_of
from regard.models.forward import telling, told_branches
from regard.models.removal import Removal
from regard.models.wrap import Around, hold

PARTS = ("transformer", "unet")
# The start of a pipeline's name -> the tokenizers whose tokens its model attends to, one after
# another. Pipelines that wrap the prompt in a template of their own are left out.
TOKENIZERS = {
    "StableDiffusion3": ("tokenizer", "tokenizer_3"),
    "StableDiffusion": ("tokenizer",),
    "LatentConsistency": ("tokenizer",),
    "PixArt": ("tokenizer",),
    "Flux": ("tokenizer_2",),
    "Wan": ("tokenizer",),
    "ShapePainter": ("tokenizer",),
}


def is_pipeline(thing: Any) -> bool:
    """Return whether an object is a diffusers pipeline.

    >>> is_pipeline(nn.Linear(2, 2))
    False
    """
    diffusers = sys.modules.get("diffusers")
    return diffusers is not None and isinstance(thing, diffusers.DiffusionPipeline)


class Runner:
    """Run a pipeline, name its branches, and keep its image."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.model: nn.Module = next(
            (x for p in PARTS if isinstance(x := getattr(pipeline, p, None), nn.Module)), None
        ) or fail(
            RuleError, "model", type(pipeline).__name__, f"a pipeline with one of {PARTS}",
            "pass the model that attends",
        )  # fmt: skip
        self.image: Any = None

    def arguments(self, inputs: Any) -> dict[str, Any]:
        """Return the arguments of the pipeline, of a prompt or a dict."""
        if isinstance(inputs, str):
            return {"prompt": inputs}
        if not isinstance(inputs, Mapping):
            fail(
                RuleError, "inputs", shape_of(inputs), "a prompt, or a dict of arguments",
                "pass 'a red fox' or {'prompt': 'a red fox', 'num_inference_steps': 20}",
            )  # fmt: skip
        return dict(inputs)

    def words(self, inputs: Any) -> list[str]:
        """Return the text tokens as strings, '' for padding; empty where they are unknown."""
        prompt = self.arguments(inputs).get("prompt")
        prompt = prompt[0] if isinstance(prompt, list | tuple) and prompt else prompt
        kind = type(self.pipeline).__name__
        names = next((x for start, x in TOKENIZERS.items() if kind.startswith(start)), ())
        tokenizers: list[Any] = [getattr(self.pipeline, name, None) for name in names]
        if not isinstance(prompt, str) or not tokenizers or None in tokenizers:
            return []
        found: list[str] = []
        for number, tokenizer in enumerate(tokenizers):
            longest = tokenizer.model_max_length
            ids = tokenizer(prompt, truncation=True, max_length=min(longest, 512))["input_ids"]
            words = [tokenizer.decode([t]).strip() or f"[{t}]" for t in ids]
            if number + 1 < len(tokenizers):  # the next tokenizer's tokens come after its padding
                words += [""] * (longest - len(words))
            found += words
        return found

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """Run the pipeline, with branches named by the text."""
        with branches_by_text(self.pipeline, self.model, arguments.get("prompt_embeds")):
            made = self.pipeline(**arguments)
        images = getattr(made, "images", None)
        self.image = images[0] if isinstance(images, list) and images else None
        return made

    def picture(self) -> np.ndarray | None:
        """Return the first image of the last run, uint8 [rows, columns, 3]; None if it has none."""
        if not hasattr(self.image, "convert"):  # latents, or images as arrays
            return None
        return np.asarray(self.image.convert("RGB"), np.uint8)


@contextmanager
def branches_by_text(
    pipeline: Any, model: nn.Module, embeds: Tensor | None = None
) -> Iterator[None]:
    """Name the branches of each forward by the rows of its text.

    The first result of `encode_prompt` is the embeddings of the prompt. A block of rows that equals
    them is conditional, any other is not; text of another shape names no branch. After forwards of
    the model, the next prompt replaces the last.
    """
    undo = Removal()
    text = _Text(embeds)
    try:
        try:
            hold(model, "forward", lambda: _Forwards(text), text, undo, join=False)
            if getattr(pipeline, "encode_prompt", None) is not None:
                hold(pipeline, "encode_prompt", lambda: _Prompts(text), text, undo, join=False)
            yield
        finally:
            undo()
    finally:
        undo()


class _Text:
    """The embeddings of a pipeline's prompt."""

    def __init__(self, embeds: Tensor | None) -> None:
        self.given, self.prompt = embeds, embeds
        self.encoded = self.ran = False


class _Prompts(Around):
    """Around `encode_prompt`: keeps its first result, until the model has run."""

    def __init__(self, text: _Text) -> None:
        super().__init__()
        self.text = text

    def run(self, plain: Any, *args: Any, **kwargs: Any) -> Any:
        given, text = plain(*args, **kwargs), self.text
        first = given[0] if isinstance(given, tuple) else given
        if text.ran and text.given is None:
            text.prompt, text.encoded, text.ran = None, False, False
        if isinstance(first, Tensor) and first.dim() == 3 and not text.encoded:
            text.prompt, text.encoded = first, True
        return given


class _Forwards(Around):
    """Around the forward of the model: names the branches of its text."""

    order = -1  # outside of what records the forward, which reads the branches

    def __init__(self, text: _Text) -> None:
        super().__init__()
        self.text = text

    def run(self, plain: Any, *args: Any, **kwargs: Any) -> Any:
        self.text.ran = True
        given = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        prompt = self.text.prompt
        names = () if told_branches() or prompt is None else blocks_of(given, prompt)
        if not names:
            return plain(*args, **kwargs)
        with telling(*names):
            return plain(*args, **kwargs)


def blocks_of(text: Any, prompt: Tensor) -> tuple[str, ...]:
    """Name equal blocks of rows of `text` [b, t, d]: those that equal `prompt`, and others.

    >>> prompt = torch.randn(1, 3, 4)
    >>> blocks_of(torch.cat([torch.zeros(1, 3, 4), prompt]), prompt)
    ('unconditional', 'conditional')
    >>> blocks_of(torch.zeros(2, 5, 4), prompt)
    ()
    """
    if not isinstance(text, Tensor) or text.shape[1:] != prompt.shape[1:]:
        return ()
    if len(text) % len(prompt):
        return ()
    prompt = prompt.to(text)
    same = [torch.equal(block, prompt) for block in text.split(len(prompt))]
    names: list[str] = []
    for one in same:
        name = "conditional" if one else "unconditional"
        many = sum(x.startswith(name) for x in names)
        names.append(f"{name} {many + 1}" if many else name)
    return tuple(names)
