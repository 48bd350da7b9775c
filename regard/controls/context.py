"""The context of a call that an edit can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.controls.prompt import Prompt
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength, for_rows
from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.partial import wide
from regard.models.forward import Forward
from regard.models.site import Site


@dataclass(eq=False)
class EditContext:
    """One call of attention that a control changes, with its context.

    `call` is the call before the edit. `prompt` is the prompt of the model. `memory` is kept for
    each site as long as the prompt: what was found once (sinks, keys of another run) stays there.
    """

    call: Call
    prompt: Prompt
    where: SiteChoice = field(default_factory=SiteChoice)
    phase: str = "both"
    # The guidance branch the control acts on, where branches are known ("conditional").
    branch: str | None = None
    # Hidden states [b, n, d] entering the block of the site, if the control reads them.
    hidden: Tensor | None = None

    @property
    def site(self) -> Site | None:
        """Return the site of the call."""
        return self.call.site if isinstance(self.call.site, Site) else None

    @property
    def forward(self) -> Forward:
        """Return the running forward of the model."""
        return self.call.forward if isinstance(self.call.forward, Forward) else Forward(0)

    @property
    def prompt_length(self) -> int | None:
        """Return the number of prompt tokens in the model; None if another model reads it."""
        return None if self.forward.timestep is not None else self.prompt.length

    @property
    def branches(self) -> int:
        """Return how many guidance branches the batch holds, as equal blocks of rows."""
        return len(self.forward.branches or (None,))

    @property
    def memory(self) -> dict[Any, Any]:
        """Return what is kept for this site as long as the prompt."""
        kept: dict[Any, Any] = self.prompt.memory.setdefault(self.site, {})
        return kept

    @property
    def device(self) -> torch.device:
        """Return the device of the call."""
        return self.call.q.device

    @property
    def query_positions(self) -> Tensor:
        """Return the positions of the queries, [1 or b, n]."""
        call = self.call
        if call.q_positions is None:
            return torch.arange(call.n, device=self.device)[None] + call.rule.offset
        at = call.q_positions.to(self.device) + call.rule.offset
        return at if at.dim() == 2 else at[None]

    @property
    def key_positions(self) -> Tensor:
        """Return the positions of the keys, [1 or b, 1 or g, m]; -1 at empty slots."""
        at = self.call.keys.positions
        if at is None:
            return torch.arange(self.call.m, device=self.device)[None, None]
        at = at.to(self.device)
        return at[None, None] if at.dim() == 1 else at[:, None] if at.dim() == 2 else at

    @property
    def decoded(self) -> Tensor:
        """Return which queries are decoded tokens, bool [1 or b, n]: those after the prompt."""
        length = self.prompt_length
        if self.prompt.of_encoder:
            return torch.full((1, self.call.n), self.in_decoder, device=self.device)
        if length is None or self.site is None or self.site.kind != "self":
            return torch.full((1, self.call.n), self.forward.step > 0, device=self.device)
        return self.query_positions >= length

    @property
    def in_decoder(self) -> bool:
        """Return whether the site is in the decoder of a model whose encoder reads the prompt."""
        site = self.site
        return self.prompt.of_encoder and site is not None and "decoder" in site.module

    def has_prompt(self, side: str) -> bool:
        """Return whether the "queries" or "keys" of the call belong to the prompt or follow it."""
        if not self.in_decoder or self.site is None:
            return True
        return side == "keys" and self.site.kind == "cross"

    def number(self, strength: Strength) -> float | Tensor:
        """Return a strength for this call: a number, or a tensor that broadcasts to [b, h, n]."""
        if isinstance(strength, PerRow):
            return for_rows(strength, self.call.b, self.call.q, self.branches)
        if not isinstance(strength, PerStep):
            return strength
        length = self.prompt_length
        if length is None or self.site is None or self.site.kind != "self":
            return strength.at(self.forward.step)
        numbers = torch.tensor(strength.numbers, dtype=torch.float64, device=self.device)
        # The last token of the prompt counts as prompt: it decides the first decoded token.
        step = (self.query_positions - length + 1).clamp(0, len(strength.numbers) - 1)
        return numbers[step][:, None].to(wide(self.call.q.dtype))

    def factor(self, strength: Strength) -> float | Tensor:
        """Return a strength for outputs: a number, or a tensor that broadcasts to [b, h, n, e]."""
        number = self.number(strength)
        return number[..., None] if isinstance(number, Tensor) else number

    def tensor(self, strength: Strength) -> Tensor:
        """Return a strength as a tensor [1 or b, 1, 1 or n], in the dtype of scores."""
        number, dtype = self.number(strength), wide(self.call.q.dtype)
        if isinstance(number, Tensor):
            return number.to(dtype)
        return torch.full((1, 1, 1), number, dtype=dtype, device=self.device)

    @property
    def limit(self) -> Tensor:
        """Return where the control acts, bool [b or 1, h or 1, n or 1]: heads, branches, phase."""
        call, made = self.call, torch.ones(1, 1, 1, dtype=torch.bool, device=self.device)
        heads = self.where.heads_at(self.site)
        if heads is not None:
            chosen = torch.zeros(call.h, dtype=torch.bool, device=self.device)
            chosen[list(heads)] = True
            made = made & chosen[None, :, None]
        names = self.where.branches
        if names is None and self.branch is not None and self.forward.branches is not None:
            names = tuple(x for x in self.forward.branches if x.startswith(self.branch))
        if names is not None:
            rows = torch.zeros(call.b, dtype=torch.bool, device=self.device)
            for name in names:
                rows[self.forward.rows(name, call.b)] = True
            made = made & rows[:, None, None]
        if self.phase != "both":
            decoded = self.decoded if self.phase == "decoded" else ~self.decoded
            made = made & decoded[:, None]
        return made

    def tokens_at(self, side: str, modality: str) -> slice:
        """Return which "queries" or "keys" (`side`) are of a modality, "text" or "image"."""
        site, call = self.site, self.call
        kind = "self" if site is None else site.kind
        # A denoising model has no cache: keys beyond the queries come from elsewhere.
        own = kind == "self" and self.forward.timestep is not None
        many = call.n if side == "queries" or own else call.m
        if kind == "joint":
            # Counted by queries: keys from elsewhere may have been appended.
            found = None if site is None else site.span(modality, call.n, self.forward)
            if found is not None:
                return found
        elif kind == "cross":
            if (modality == "text") == (side == "keys"):
                return slice(0, many)
        else:
            return slice(0, many)
        return fail(
            CapabilityError, "which", f"tokens of {modality} among the {side} of "
            f"{getattr(site, 'module', 'a call')}", f"a site where {modality} is {side[:-1]}s",
            "choose other sites: where='self', 'cross' or 'joint'",
        )  # fmt: skip
