"""Compare a control at several strengths: generated text, moved weight, and side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.controls.base import Control
from regard.controls.steered import logit_difference
from regard.controls.steering import Steering
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail
from regard.models.attach import attach
from regard.models.longest_text import longest


@dataclass(frozen=True)
class Strengthened:
    """One strength of a sweep; None is the model without the control.

    `text` is what it generates after the prompt, `kl` (nats) the divergence of its next tokens from
    those of the unsteered model over the prompt, `perplexity` that of other text after the prompt,
    `moved` the largest change of a row of weights, `masses` the mass on each set before and after.
    """

    strength: float | None
    text: str
    kl: float
    perplexity: float
    moved: float
    masses: dict[str, tuple[float, float]]


@torch.no_grad()
def sweep(
    model: Any, tokenizer: Any, control: Control, strengths: Sequence[float], prompt: str,
    other: str, *, tokens: int = 32, messages: Any = (), documents: Sequence[str] = (),
) -> Iterator[Strengthened]:  # fmt: skip
    """Yield results of the model without the control, then with it at each strength.

    `other` is text that is read after the prompt; a rise of its perplexity is a side effect.
    """
    if not hasattr(control, "strength"):
        fail(
            RuleError, "control", type(control).__name__, "a control with a strength",
            "name one of regard.controls.known()",
        )  # fmt: skip
    if not callable(getattr(model, "generate", None)):
        fail(CapabilityError, "model", type(model).__name__, "a model that generates", "name one")
    asked = tokenizer(prompt, return_tensors="pt")
    ids, most = asked["input_ids"], longest(model)
    if tokens < 1 or ids.shape[1] + tokens > most:
        fail(
            ValueRangeError, "tokens", tokens,
            f"from 1 to {max(0, most - ids.shape[1]):,}: the model was made for {most:,} tokens, "
            f"and the prompt takes {ids.shape[1]:,}",
            "generate fewer, or shorten the prompt",
        )  # fmt: skip
    more = tokenizer(other, return_tensors="pt", add_special_tokens=False)["input_ids"]
    more = more[:, : most - ids.shape[1]]
    whole = torch.cat((ids, more), 1)
    plain = model(ids).logits.float()

    def measured(logits: Tensor) -> float:
        rows = logits[0, ids.shape[1] - 1 : -1].float()
        return math.exp(float(torch.nn.functional.cross_entropy(rows, more[0])))

    def said() -> str:
        out = model.generate(
            **asked, max_new_tokens=tokens, do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )  # fmt: skip
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    yield Strengthened(None, said(), 0.0, measured(model(whole).logits), 0.0, {})
    for strength in strengths:
        stage = Steering(
            control.replace(strength=float(strength)), tokenizer=tokenizer, messages=messages,
            documents=documents, prompt=ids, must_move=False,
        )  # fmt: skip
        with attach(model, stage, check=False):
            kl = logit_difference(plain, model(ids).logits.float())["kl"]
            worse, text = measured(model(whole).logits), said()
        found = stage.receipt
        masses = {name: found.mass(name) for name in found.sets}
        yield Strengthened(float(strength), text, kl, worse, found.moved, masses)
