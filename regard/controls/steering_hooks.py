"""Wrappers of blocks and of `generate` for controls, and rows of weights kept for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.controls.token_sets import TokenSet
from regard.core.errors import RuleError, fail
from regard.models.wrap import Around


def row_on(steering: Any, which: TokenSet, heads: Any, b: int) -> tuple[Tensor, Tensor]:
    """Return weights [heads, tokens] of the last query on tokens of a prompt, and their ids."""
    here = steering._thread
    rows, ids = [], here.prompt.ids
    assert ids is not None
    for layer, head in heads:
        if layer not in here.rows:
            fail(RuleError, "heads", f"layer {layer}", "layers of the model", "name others")
        weights, at = here.rows[layer]
        chosen = which.mask(at)
        own = chosen[b if len(chosen) > 1 else 0, head if chosen.shape[1] > 1 else 0]
        rows.append(weights[b, head][own])
        place = at.key_positions.expand(len(weights), -1, -1)[b, 0][own]
    return torch.stack(rows).float().cpu(), ids[b * len(ids) // len(weights)][place].cpu()


class EnteringBlocks(Around):
    """Wrap the forward of a block, and record the hidden states entering it."""

    order = 2

    def __init__(self, thread: Any, layer: int | None) -> None:
        super().__init__()
        self.thread, self.layer = thread, layer

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record the states, and drop them after the block."""
        self.thread.hidden[self.layer] = args[0] if args else kwargs["hidden_states"]
        try:
            return plain(*args, **kwargs)
        finally:
            self.thread.hidden.pop(self.layer, None)


class Generating(Around):
    """Wrap `generate`: its prompt is the prompt of every forward within."""

    order = 2

    def __init__(self, steering: Any) -> None:
        super().__init__()
        self.steering = steering

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record the prompt, and add the control's processor of next-token scores."""
        one = self.steering
        if one.paused:
            return plain(*args, **kwargs)
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        prompts = one._thread.generating
        depth = len(prompts)
        prompts.append(one.prompt_of({**kwargs, "input_ids": ids}))
        own = list(one.control.processors(one))
        if own:
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or ()), *own]
        try:
            return plain(*args, **kwargs)
        finally:
            del prompts[depth:]
