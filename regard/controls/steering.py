"""The stage that runs a control: it tracks the prompt, applies edits, and keeps the receipt."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from regard.controls.base import Control
from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit, apply, changed_queries, named_sets
from regard.controls.moved_weight import difference, measured, rows_at, rows_to_look_at
from regard.controls.pipeline_prompt import hear_prompt
from regard.controls.prompt import Prompt
from regard.controls.receipt import Fired, Receipt
from regard.controls.site_choice import of_other_encoders
from regard.controls.steering_hooks import EnteringBlocks, Generating
from regard.controls.token_sets import FoundInCall
from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail
from regard.core.result import Result
from regard.models.forward import given_to
from regard.models.removal import Removal
from regard.models.residual import layers_of
from regard.models.site import Sites
from regard.models.stage import Stage
from regard.models.wrap import hold
from regard.run.executor import No
from regard.run.runner import run

# Decoded tokens whose weights are measured: the first few, then powers of two.
FEW = 4


class _SteeringThread(threading.local):
    """The state of one thread."""

    def __init__(self) -> None:
        self.generating: list[Prompt] = []
        self.prompt = Prompt()
        self.seen = 0
        self.caches: WeakKeyDictionary[Any, Prompt] = WeakKeyDictionary()
        self.hidden: dict[int | None, Tensor] = {}
        # Weights of the last query of each layer [b, h, m], and the positions of the keys.
        self.rows: dict[int | None, tuple[Tensor, EditContext]] = {}
        self.calls: list[tuple[Call, list[EditContext], tuple[AttentionEdit, ...]]] = []
        self.paused = False
        self.step = 0
        # Whether the prompt is that of a denoising model.
        self.denoises = False


class Steering(Stage):
    """Run a control on a model; `receipt` has what it changed.

    `measure` chooses the calls whose weights are measured for the receipt: "some" (prompts, and
    some decoded tokens), "all", or "none".
    """

    # Scores must be edited on the keys that policies have left.
    runs_last = True

    def __init__(
        self, control: Control, *, tokenizer: Any = None,
        messages: Sequence[Mapping[str, Any]] = (), documents: Sequence[str] = (),
        grid: tuple[int, int] | None = None,
        prompt: Any = None, measure: str = "some", must_move: bool = True, pipeline: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(control.where.place)
        if measure not in ("some", "all", "none"):
            fail(RuleError, "measure", repr(measure), "'some', 'all' or 'none'", "choose one")
        self.control, self.tokenizer, self.must_move = control, tokenizer, must_move
        self.messages, self.documents, self.grid = messages, documents, grid
        self.measure = measure
        self.receipt = Receipt(control.name or type(control).__name__, control.describe())
        self.pipeline = pipeline
        told = prompt is None or isinstance(prompt, Prompt)
        self.given: Prompt | None = prompt if told else self.prompt_of({"input_ids": prompt})
        guided = control.guidance is not None
        self._edits = () if guided and control.is_neutral else control.edits()
        # Modules without tokens of the prompt, where a control of language does not act.
        self._elsewhere: frozenset[str] = frozenset()
        self._thread = _SteeringThread()
        self._undo = Removal()

    @property
    def paused(self) -> bool:
        """Return whether this thread runs the model without the control."""
        return self._thread.paused

    @paused.setter
    def paused(self, x: bool) -> None:
        self._thread.paused = x

    @property
    def name(self) -> str:
        """Return the name used in errors."""
        return f"steer({self.control.name or type(self.control).__name__})"

    def begin(self, model: Any, sites: Sites) -> None:
        """Check that the control supports the model, and wrap `generate`."""
        answer = self.control.can(model, sites)
        if isinstance(answer, No):
            fail(
                CapabilityError, f"control {self.receipt.control!r}",
                f"{type(model).__name__}, {answer.reason}", "a model that it supports",
                "use another control: see regard.controls.known()",
            )  # fmt: skip
        if self.control.phase != "both" and any(x.for_all_queries for x in self._edits):
            fail(
                CapabilityError, "phase", repr(self.control.phase),
                "'both', for keys and values: all queries share them",
                "edit the scores or the output instead",
            )  # fmt: skip
        for site in sites:
            heads = self.control.where.heads_at(site) or ()
            if site.heads is not None and any(not 0 <= h < site.heads for h in heads):
                fail(
                    RuleError, "where['heads']", list(heads),
                    f"heads 0 to {site.heads - 1} at {site.module}", "count heads from 0",
                )  # fmt: skip
        self.model, self.sites = model, sites
        if self.control.models != "diffusion" and self.control.where.names is None:
            self._elsewhere = of_other_encoders(model, sites)
        if self.pipeline is not None:
            hear_prompt(self.pipeline, model, self, self._undo)
        if not self.control.is_neutral:
            self.control.wrap_model(self, self._undo)
        if self.control.needs_hidden:
            for layer in layers_of(model, sites):
                entering = partial(EnteringBlocks, self._thread, layer.site.layer)
                hold(layer.block, "forward", entering, self, self._undo, join=False)
        if callable(getattr(model, "generate", None)):
            hold(model, "generate", lambda: Generating(self), self, self._undo, join=False)

    def end(self) -> None:
        """Release the model."""
        self._undo()

    def _hear(self, prompt: Prompt | None) -> None:
        """Read the prompt of a pipeline that starts."""
        if self.given is None:
            self._thread.prompt = prompt or Prompt(None, self.tokenizer, grid=self.grid)
            self._thread.denoises = True

    def reads(self, prompt: Prompt) -> None:
        """Set the prompt of this thread's next calls, where no forward of a model sets it."""
        self._thread.prompt = prompt

    def prompt_of(self, given: Mapping[str, Any]) -> Prompt:
        """Build the prompt from the inputs of a model."""
        ids = given.get("input_ids")
        real = given.get("attention_mask")
        if not isinstance(ids, Tensor) or ids.is_floating_point():
            return Prompt(None, self.tokenizer, grid=self.grid)
        ids = ids if ids.dim() == 2 else ids[None]
        if not isinstance(real, Tensor) or real.shape != ids.shape:
            real = None
        kinds = given.get("mm_token_type_ids")
        images = kinds == 1 if isinstance(kinds, Tensor) else None
        config: Any = getattr(getattr(self, "model", None), "config", None)
        number = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        if images is None and number is not None:
            images = ids == number
        return Prompt(
            ids, self.tokenizer, None if real is None else real.bool(), images, self.messages,
            self.documents, self.grid, bool(getattr(config, "is_encoder_decoder", False)),
        )  # fmt: skip

    def arrive(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Read the prompt when a forward starts."""
        if self.paused:
            return
        self.receipt.forwards += 1
        here = self._thread
        here.calls.clear()
        if self.given is not None or here.generating:
            here.prompt = self.given or here.generating[-1]
            return
        given = given_to(model, args, kwargs)
        if "timestep" in given or "timesteps" in given:
            # Another model reads the prompt; it lasts until denoising starts again.
            if not here.denoises:
                self._hear(None)
            return
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        length = int(cache.get_seq_length()) if cache is not None else 0
        many = ids.shape[-1] if isinstance(ids, Tensor) else 0
        if not length or (many and here.prompt.of_encoder):
            here.prompt, here.seen = self.prompt_of(given), many
            return
        if here.prompt.of_encoder:
            return
        # A cache continues the prompt of the forward that filled it.
        known = here.caches.get(cache) or (here.prompt if here.seen == length else Prompt())
        here.caches[cache] = here.prompt = known
        here.seen = length + many
        if many > 1 and known.ids is not None and isinstance(ids, Tensor):
            joined = torch.cat((known.ids, ids.to(known.ids.device)), 1)
            mask = given.get("attention_mask")
            here.prompt = self.prompt_of({"input_ids": joined, "attention_mask": mask})
            here.caches[cache] = here.prompt

    def before(self, call: Call) -> Call:
        """Apply the edits, if the control acts on any query."""
        if self.paused:
            return call
        here, control = self._thread, self.control
        at = EditContext(call, here.prompt, control.where, control.phase, control.branch)
        if at.forward.timestep is not None:
            if at.forward.step < here.step:  # denoising starts again
                here.prompt.memory.clear()
            here.step = at.forward.step
        at.hidden = here.hidden.get(None if at.site is None else at.site.layer)
        own, known, edits = call, [at], self._edits
        if at.site is not None and at.site.module in self._elsewhere:
            edits = ()
        elif bool(at.limit.any()):
            own, known = apply(edits, at)
        else:  # sets found in a prompt are found even if the control acts only on later tokens
            for x in dict.fromkeys(x for edit in edits for x in edit.sets()):
                if isinstance(x, FoundInCall):
                    x.mask(at)
            edits = ()
        here.calls.append((call, known, edits if len(known) == len(edits) else ()))
        return own

    def see(self, call: Call, result: Result) -> None:
        """Keep the weights of the last query, if the control reads them while decoding."""
        if self.paused or not self.control.needs_rows:
            return
        last = torch.full((call.b, 1), call.n - 1)
        found = run(rows_at(call, last), ("weights",)).weights
        assert found is not None
        at = EditContext(call, self._thread.prompt)
        self._thread.rows[None if at.site is None else at.site.layer] = found[:, :, 0], at

    @property
    def prompt(self) -> Prompt:
        """Return the current prompt of this thread."""
        return self._thread.prompt

    def after(self, call: Call, result: Result) -> Result:
        """Apply the edits of outputs, and record the call."""
        if self.paused:
            return result
        old, known, edits = self._thread.calls.pop()
        made = result
        for edit, at in zip(edits, known, strict=False):
            made = edit.after(at, made)
        if edits and (call is not old or made is not result):
            self._note(replace(known[0], call=old), call, result, made)
        return made

    @torch.no_grad()
    def _note(self, at: EditContext, new: Call, result: Result, made: Result) -> None:
        """Record one call in the receipt."""
        call, step = at.call, at.forward.step
        prompt = call.n > 1 or step == 0
        fired = Fired(at.site, step, call.n, prompt, self._heads(at))
        few = prompt or step <= FEW or step & (step - 1) == 0
        if self.measure == "all" or (self.measure == "some" and few):
            named = named_sets(self._edits, at)
            chosen = changed_queries(self._edits, at)
            rows = rows_to_look_at(at, chosen)
            before, after, moved = measured(call, new, rows, named)
            moved = max(moved, difference(result.out, made.out))
            fired = replace(fired, before=before, after=after, rows=rows, moved=moved)
        self.receipt.calls.append(fired)

    @staticmethod
    def _heads(at: EditContext) -> tuple[int, ...]:
        heads = at.where.heads_at(at.site)
        return tuple(range(at.call.h)) if heads is None else tuple(heads)
