"""Agent attention: a few pooled queries (agents) attend to all keys, and queries attend to them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Score
from regard.core.score.dense import DenseBias
from regard.core.support import Padding
from regard.layers.arguments import need_size
from regard.layers.attention import Attention, joined, split
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("agent_attention")
@method(
    "agent_attention",
    call='import regard\nlayer = regard.layer("agent_attention", 256, heads=8, agents=49)',
)
class AgentAttention(Attention):
    """Agents, which are pooled queries, attend to all keys; queries attend to the agents.

    `y = softmax(q a^T) softmax(a k^T) v`, at a cost of n times the `agents`. Of a padded sequence
    the agents are the pooled queries of real tokens. Every agent is a mean over the whole sequence,
    so the layer is neither causal, nor decodes; the paper's own are of images.

    >>> AgentAttention(32, heads=4, agents=5)(torch.randn(1, 20, 32)).shape
    torch.Size([1, 20, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, decode=False, documents=False, linear=True, multihead_weights=True
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "agents": 5}

    def __init__(self, dim: int, heads: int, *, agents: int = 49, **settings: Any) -> None:
        self.decides(settings, "support", "weigh")
        need_size("agents", agents)
        super().__init__(dim, heads, **settings)
        self.agents = agents
        self.takes_no_bias_of_position("agents have no position")

    def pool(self, q: Tensor, real: Tensor | None = None) -> Tensor:
        """Average queries [b, h, n, d] into agents [b, h, a, d]; `real` [b, n] marks padding."""
        if real is not None:
            return shares(real, self.agents).to(q)[:, None] @ q
        pooled: Tensor = F.adaptive_avg_pool1d(q.flatten(0, 1).mT, self.agents).mT
        agents: Tensor = pooled.unflatten(0, q.shape[:2])
        return agents

    def scores_of(self, agents_ask: bool) -> Score:
        """Return the score of agents against keys, or of queries against agents."""
        return self.score()

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend from agents to keys, then from queries to agents."""
        agents = self.pool(call.q, None if input.crosses else input.padding)
        ask = Rule(score=self.scores_of(True))
        if input.padding is not None:
            ask = ask.replace(support=Padding(input.padding))
        values = super().look(call.replace(q=agents, rule=ask), input)
        rule = Rule(score=self.scores_of(False))
        return super().look(call.replace(k=agents, v=values, rule=rule), input)


def shares(real: Tensor, agents: int) -> Tensor:
    """Return the share of each token in each agent, [b, agents, n]: adaptive pooling of real ones.

    Agent a of A pools the real tokens from floor(a L / A) up to ceil((a + 1) L / A), of L.

    >>> shares(torch.tensor([[False, True, True, True, True]]), 2)
    tensor([[[0.0000, 0.5000, 0.5000, 0.0000, 0.0000],
             [0.0000, 0.0000, 0.0000, 0.5000, 0.5000]]])
    """
    count = real.sum(1)[:, None, None]  # [b, 1, 1]
    rank = (real.cumsum(1) - 1)[:, None]  # [b, 1, n]
    agent = torch.arange(agents, device=real.device)[:, None]
    first = torch.div(agent * count, agents, rounding_mode="floor")
    last = torch.div((agent + 1) * count + agents - 1, agents, rounding_mode="floor")
    taken = (rank >= first) & (rank < last) & real[:, None]
    return taken / taken.sum(-1, keepdim=True).clamp_min(1)


@register("agent_attention_image")
class ImageAgents(AgentAttention):
    """Agent attention on a grid, with position biases and a depthwise convolution of the values.

    Agents are pooled over a grid of `side * side`. Each bias is the sum of a term for rows, one for
    columns, and a small map interpolated to the grid.

    >>> ImageAgents(32, heads=4, grid=(6, 4), side=2)(torch.randn(1, 24, 32)).shape
    torch.Size([1, 24, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, decode=False, padding=False, left_padding=False,
        documents=False, linear=True, any_length=False,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "grid": (6, 4), "side": 2}

    def __init__(
        self, dim: int, heads: int, *, grid: Sequence[int], side: int = 7, **settings: Any
    ) -> None:
        self.decides(settings, "kv_heads")
        need_size("side", side)
        super().__init__(dim, heads, agents=side * side, **settings)
        self.grid, self.side = tuple(grid), side
        self.rows, self.columns, self.maps = (
            nn.Parameter(torch.zeros(2, heads, self.agents, *size))
            for size in ((self.grid[0], 1), (1, self.grid[1]), (side, side))
        )
        self.beside = nn.Conv2d(heads * self.value_dim, heads * self.value_dim, 3, padding=1,
                                groups=heads * self.value_dim)  # fmt: skip

    def pool(self, q: Tensor, real: Tensor | None = None) -> Tensor:
        """Average queries over a coarser grid, which has no padding."""
        if q.shape[2] != prod(self.grid):
            self.cannot(
                "x", f"{q.shape[2]} tokens", f"fill its grid {self.grid}", "pass one token a cell"
            )
        image = q.flatten(0, 1).mT.unflatten(2, self.grid)
        pooled: Tensor = F.adaptive_avg_pool2d(image, self.side).flatten(2).mT
        agents: Tensor = pooled.unflatten(0, q.shape[:2])
        return agents

    def scores_of(self, agents_ask: bool) -> Score:
        """Add the position bias of agents against keys, or of queries against agents."""
        which = 0 if agents_ask else 1
        stretched = F.interpolate(self.maps[which], self.grid, mode="bilinear")
        bias = (stretched + self.rows[which] + self.columns[which]).flatten(2)
        return self.score() + DenseBias((bias if agents_ask else bias.mT)[None])

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Add the convolution of the values."""
        values = joined(call.v).mT.unflatten(2, self.grid)
        near = self.beside(values).flatten(2).mT
        return super().look(call, input) + split(near, self.heads)
