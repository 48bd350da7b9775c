"""Controls of `regard.steer` for single requests, while these are served.

A server names one control; a request turns it on, and may say which tokens and how much. What is
steered is cached for no other request, nor read from what others left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regard.controls.registry import control, known
from regard.controls.steering import Steering
from regard.controls.token_sets import FoundInCall
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail, nearest
from regard.core.value import Value
from regard.models.forward import Forward
from regard.models.site import Sites
from regard.serving.vllm.server_settings import Asked, Steer


def check_control(asked: Steer) -> None:
    """Refuse a control that does not exist, or needs more than attention of a server.

    >>> check_control(Steer("emphasis"))
    >>> check_control(Steer("emphasiss"))
    Traceback (most recent call last):
      ...
    regard.core.errors.RuleError: `control`: got 'emphasiss'; expected a control. Fix: ...
    """
    kind: Any = known().get(asked.control)
    if kind is None:
        names = known()
        fail(
            RuleError, "control", repr(asked.control), "a control",
            nearest(asked.control, names, "take one of regard.controls.known()"),
        )  # fmt: skip
    reason = ""
    if kind.needs_hidden:
        reason = "hidden states between layers"
    elif kind.needs_rows:
        reason = "rows of weights while decoding"
    elif kind.models != "language":
        reason = f"{kind.models}"
    if reason:
        fail(
            CapabilityError, f"control {asked.control!r}", f"a control that reads {reason}",
            "one that changes queries, keys, values, scores or outputs of a language model",
            "take emphasis, say; or steer the model in transformers: regard.steer",
        )  # fmt: skip


class RequestSteering:
    """The control of one request: its stage, and the calls that the stage is handed."""

    def __init__(
        self, given: Steer, asked: Asked, tokens: Sequence[int], tokenizer: Any, model: Any,
        sites: Sites,
    ) -> None:  # fmt: skip
        settings = dict(given.settings)
        if asked.which is not None:
            settings["which"] = asked.which
        if asked.strength is not None:
            settings["strength"] = asked.strength
        made = control(given.control, **settings)
        if made.guidance is not None or type(made).processors is not _no_processors():
            fail(
                CapabilityError, f"control {given.control!r}",
                "a control that runs the model twice, or reads scores of tokens",
                "one that changes attention alone", "steer in transformers: regard.steer",
            )  # fmt: skip
        self.prompt = len(tokens)
        # Whether tokens are found by how a prompt attends, all of it at once.
        self._whole = any(finds_tokens(edit) for edit in made.edits())
        self._name = given.control
        self.stage = Steering(made, tokenizer=tokenizer, measure="some", must_move=False)
        ids = torch.tensor([list(tokens)])
        self.stage.begin(model, sites)
        self._read = self.stage.prompt_of({"input_ids": ids})

    def call(self, call: Call) -> Call:
        """Return a call of the request that says where its queries are, and at which step."""
        seen, at = call.keys.m, call.q_positions
        if self._whole and call.n == seen < self.prompt:
            fail(
                CapabilityError, f"control {self._name!r}", f"the first {seen} tokens of a prompt "
                f"of {self.prompt}", "a prompt in one piece: it finds tokens by how all of it "
                "attends", "serve with --no-enable-chunked-prefill, and --max-num-batched-tokens "
                "of the longest prompt",
            )  # fmt: skip
        if call.rule.position_free:  # one query, which may attend to all: edits ask where it is
            at = torch.tensor([seen - 1], device=call.q.device)
        self.stage.reads(self._read)
        return call.replace(q_positions=at, forward=Forward(max(0, seen - self.prompt)))

    @property
    def said(self) -> str:
        """What the receipt says, in a line."""
        return f"{self.stage.receipt}".replace("\n", "; ")


def finds_tokens(x: Any) -> bool:
    """Return whether an edit, or a set in it, finds its tokens in the first call of a prompt.

    >>> from regard.controls import AddBias
    >>> from regard.controls.sink_calibration import LaterSinks
    >>> finds_tokens(AddBias([3], 2.0)), finds_tokens(AddBias(~LaterSinks(), 2.0))
    (False, True)
    """
    if isinstance(x, FoundInCall):
        return True
    if isinstance(x, tuple | list):
        return any(finds_tokens(part) for part in x)
    return isinstance(x, Value) and any(finds_tokens(part) for _, part in x.fields())


def _no_processors() -> Any:
    from regard.controls.base import Control

    return Control.processors
