"""Attention of a recurrent decoder to its source: global, or local (Luong)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Additive, Dot, General, Score
from regard.core.score.dense import DenseBias
from regard.core.support import Padding, Window
from regard.layers.arguments import need_size
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.run.api import attend, partial

SOURCE = Capabilities(
    causal=False, bidirectional=False, documents=False, constant_memory=True
)  # what every layer here can do: attend to a source


class SourceAttention(Layer):
    """Base of this file: decoder states x [b, n, dim] attend to source states [b, m, dim].

    `y = tanh(W [c; x])`, with c the output of attention. There are no key or value projections.
    A memory keeps the source, so later steps need no context.
    """

    can: ClassVar[Capabilities] = SOURCE
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "context_dim": 32}

    def __init__(
        self, dim: int, *, context_dim: int | None = None, causal: bool = False, **settings: Any
    ) -> None:
        if context_dim is None:
            self.cannot("context_dim", None, "attend to itself", "pass the width of the source")
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.to_out = nn.Linear(dim + self.context_dim, dim, bias=False)
        self.make(**settings)

    def make(self) -> None:
        """Build the parameters that `look` reads."""

    def look(self, q: Tensor, source: Tensor, rule: Rule, input: LayerInput) -> Tensor:
        """Attend from states [b, 1, n, dim] to the source [b, 1, m, c]: [b, 1, n, c]."""
        raise NotImplementedError

    def compute(self, input: LayerInput) -> Tensor:
        """Attend, and combine the output with the state."""
        source, padding, memory = input.context, input.padding, input.memory
        if memory is not None:
            if not memory.seen:
                memory.keep("source", source)
                if padding is not None:
                    memory.keep("padding", padding)
            source, padding = memory.get("source"), memory.get("padding")
        rule = Rule.of(None) if padding is None else Rule(Padding(padding))
        seen = self.look(input.x[:, None], source[:, None], rule, input)[:, 0]
        y: Tensor = torch.tanh(self.to_out(torch.cat((seen, input.x), -1)))
        return y


@register("luong_attention")
@method(
    "luong_attention",
    call="import regard\n"
    'layer = regard.layer("luong_attention", 512, context_dim=512, matching="general")',
)
class GlobalAlignment(SourceAttention):
    """Attend to every source state (Luong, global).

    `matching` is "dot" (h s), "general" (h W s) or "concat" (v tanh(W [h; s]), through
    `width` hidden units, `dim` unless given).

    >>> GlobalAlignment(8, context_dim=8)(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def make(self, *, matching: str = "general", width: int | None = None) -> None:
        """Build the parameters of the score."""
        if matching not in ("dot", "general", "concat"):
            self.cannot("matching", repr(matching), "score so", "pass 'dot', 'general' or 'concat'")
        if width is not None and matching != "concat":
            self.cannot("width", width, f"use width with matching={matching!r}", "leave width out")
        self.matching = matching
        width = self.dim if width is None else width
        if matching == "general":
            self.weight = nn.Parameter(torch.randn(1, self.dim, self.context_dim) * self.dim**-0.5)
        elif matching == "concat":
            self.of_state = nn.Parameter(torch.randn(1, self.dim, width) * self.dim**-0.5)
            self.of_source = nn.Parameter(
                torch.randn(1, self.context_dim, width) * self.context_dim**-0.5
            )
            self.weight = nn.Parameter(torch.randn(1, width) * width**-0.5)

    def score(self) -> Score:
        """Return the score."""
        if self.matching == "dot":
            return Dot(1.0)
        if self.matching == "general":
            return General(self.weight, 1.0)
        return Additive(self.of_state, self.of_source, self.weight)

    def look(self, q: Tensor, source: Tensor, rule: Rule, input: LayerInput) -> Tensor:
        """Attend to the whole source."""
        return attend(q, source, source, rule.replace(score=self.score()))


@register("luong_local_m")
class MonotonicAlignment(GlobalAlignment):
    """Step t attends within `reach` of position t of the source (Luong, local-m).

    >>> layer = MonotonicAlignment(8, context_dim=8, reach=2)
    >>> layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "context_dim": 32, "reach": 3}

    def make(self, *, reach: int = 10, **settings: Any) -> None:
        """Build the score, and the window."""
        need_size("reach", reach)
        super().make(**settings)
        self.near = Window(reach + 1)

    def look(self, q: Tensor, source: Tensor, rule: Rule, input: LayerInput) -> Tensor:
        """Attend around the position of the step."""
        start = 0 if input.memory is None else input.memory.seen
        near = self.near.shift(start) if start else self.near
        return super().look(q, source, rule.replace(support=rule.support & near), input)


@register("luong_local_p")
class PredictedAlignment(GlobalAlignment):
    """Each state predicts a center, and weights fall off around it (Luong, local-p).

    `p = S sigmoid(v tanh(W h))`, S the source's length; within `reach` of p softmax weights are
    multiplied by `exp(-(s - p)^2 / (2 sigma^2))`, `sigma = reach / 2`, and not renormalized, which
    is what trains v and W.

    >>> layer = PredictedAlignment(8, context_dim=8, reach=2)
    >>> layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "context_dim": 32, "reach": 6}

    def make(self, *, reach: int = 10, **settings: Any) -> None:
        """Build the score, and the network that predicts the center."""
        need_size("reach", reach)
        super().make(**settings)
        self.reach = reach
        self.to_place = nn.Sequential(
            nn.Linear(self.dim, self.dim, False), nn.Tanh(), nn.Linear(self.dim, 1, False)
        )

    def places(self, x: Tensor, length: Tensor) -> Tensor:
        """Predict a real-valued center in sources of some length [b]: [b, n, 1]."""
        places: Tensor = self.to_place(x).sigmoid() * length[:, None, None]
        return places

    def look(self, q: Tensor, source: Tensor, rule: Rule, input: LayerInput) -> Tensor:
        """Attend around the predicted center, and scale down weights far from it."""
        b, m = source.shape[0], source.shape[2]
        real = getattr(rule.support, "valid", None)
        length = source.new_full((b,), m) if real is None else real.sum(1).to(source.dtype)
        away = torch.arange(m, device=source.device) - self.places(q[:, 0], length)
        inside = torch.where(away.detach().abs() <= self.reach, 0.0, -torch.inf)[:, None]
        falls = -away.square()[:, None] / (2 * (self.reach / 2) ** 2)
        near = rule.replace(score=self.score() + DenseBias(inside.to(source.dtype)))
        weighed = near.replace(score=near.score + DenseBias(falls.to(source.dtype)))
        whole, part = partial(q, source, source, near), partial(q, source, source, weighed)
        assert whole.lse is not None
        assert part.lse is not None
        # The weights' own sum stays that of the softmax before it was scaled down.
        return part.out * torch.exp(part.lse - whole.lse)[..., None].to(part.out.dtype)
