"""The prompt of a pipeline of diffusers, as the tokens that its model attends to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from regard.controls.prompt import Prompt, read
from regard.models.pipelines import TOKENIZERS, branches_by_text
from regard.models.removal import Removal
from regard.models.wrap import Around, hold


def pipeline_prompt(pipeline: Any, texts: list[str]) -> Prompt | None:
    """Return the prompt of each picture as a pipeline's tokenizers read it; None if unknown.

    Tokens of a second tokenizer come after those of the first and its padding.
    """
    kind = type(pipeline).__name__
    names = next((x for start, x in TOKENIZERS.items() if kind.startswith(start)), ())
    tokenizers: list[Any] = [getattr(pipeline, name, None) for name in names]
    if not tokenizers or None in tokenizers:
        return None
    rows: list[tuple[str, list[tuple[int, int]]]] = []
    for words in texts:
        text, spans = "", []
        for number, tokenizer in enumerate(tokenizers):
            longest = min(tokenizer.model_max_length, 512)
            ids = tokenizer(words, truncation=True, max_length=longest)["input_ids"]
            more, own = read(tokenizer, ids)
            start = len(text)
            spans += [(a + start, b + start) for a, b in own]
            text += more + "\n"
            if number + 1 < len(tokenizers):
                spans += [(0, 0)] * (tokenizer.model_max_length - len(own))
        rows.append((text, spans))
    many = max(len(spans) for _, spans in rows)
    made = Prompt(torch.zeros(len(rows), many, dtype=torch.long), tokenizers[0])
    made.rows = [(text, spans + [(0, 0)] * (many - len(spans))) for text, spans in rows]
    return made


def hear_prompt(pipeline: Any, model: nn.Module, steering: Any, undo: Removal) -> None:
    """Give a control the prompt of each run of a pipeline, and its rows in the batch."""
    stack = ExitStack()
    undo.add(stack.close)
    stack.enter_context(branches_by_text(pipeline, model))
    if getattr(pipeline, "encode_prompt", None) is not None:
        hold(pipeline, "encode_prompt", lambda: _Heard(pipeline, steering), steering, undo,
             join=False)  # fmt: skip


class _Heard(Around):
    """Wrap `encode_prompt`, and record the texts that it gets."""

    def __init__(self, pipeline: Any, steering: Any) -> None:
        super().__init__()
        self.pipeline, self.steering = pipeline, steering

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        words = kwargs.get("prompt", args[0] if args else None)
        words = [words] if isinstance(words, str) else words
        if isinstance(words, list | tuple) and words and all(isinstance(x, str) for x in words):
            self.steering._hear(pipeline_prompt(self.pipeline, list(words)))
        return plain(*args, **kwargs)
