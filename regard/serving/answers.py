"""Log-probabilities of several answers to one prompt, which is read once (DPO prefix sharing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.core.support import SharedPrefix
from regard.models.attach import attach
from regard.models.stage import Stage


@method(
    "dpo_prefix_sharing",
    call="from regard.serving import answer_log_probs\n"
    "# chosen, rejected = answer_log_probs(model, prompt_ids, [chosen_ids, rejected_ids])",
)
def answer_log_probs(model: Any, prompt: Tensor, answers: Sequence[Tensor]) -> list[Tensor]:
    """Return log p(answer | prompt) of each answer, a scalar that gradients flow through.

    `prompt` [p] and `answers` [n_i] are ids. One forward reads the prompt once, followed by all
    answers, p + sum(n_i) tokens: each answer sees the prompt and itself, with positions right after
    the prompt. For losses that compare answers, as in DPO:

        chosen, rejected = answer_log_probs(model, prompt, [yes, no])
        loss = -F.logsigmoid(beta * (chosen - rejected - reference))

    The model is a decoder of transformers that takes `position_ids`.
    """
    if not len(prompt) or not answers or not all(map(len, answers)):
        fail(
            ValueRangeError, "answers", f"{len(prompt)} tokens and answers of "
            f"{[len(x) for x in answers]}", "a prompt and answers of at least one token",
            "leave empty answers out",
        )  # fmt: skip
    p, sizes = len(prompt), tuple(map(len, answers))
    ids = torch.cat([prompt, *answers])
    places = torch.cat([torch.arange(p), *(p + torch.arange(size) for size in sizes)])
    with attach(model, [_Shared(SharedPrefix(p, sizes))], check=False):
        logits = model(
            input_ids=ids[None], position_ids=places[None].to(ids.device), use_cache=False
        ).logits[0]
    found, start = [], p
    for answer in answers:
        # The first token of every answer is predicted at the end of the prompt.
        rows = torch.cat([torch.tensor([p - 1]), start + torch.arange(len(answer) - 1)])
        log_p = logits[rows.to(ids.device)].log_softmax(-1)
        found.append(log_p.gather(-1, answer[:, None]).sum())
        start += len(answer)
    return found


class _Shared(Stage):
    """Mask every call so that each answer sees the prompt and itself."""

    def __init__(self, support: SharedPrefix) -> None:
        super().__init__()
        self.support = support

    def before(self, call: Call) -> Call:
        """Replace the causal support."""
        return call.replace(rule=call.rule.replace(support=self.support))
