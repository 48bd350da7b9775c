"""Keys and values projected from one small latent vector a token, the only thing kept (MLA)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.keys import Dense
from regard.core.rotary import Rotation
from regard.core.score import Dot, Score
from regard.layers.arguments import need_size
from regard.layers.attention import Attention, split
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.positions import Position, Rotary
from regard.layers.registry import register
from regard.memories.base import KeyMemory
from regard.memories.full import Full


@register("mla")
class LatentKeys(Attention):
    """Every head's keys and values are projections of one latent vector a token (MLA).

    `c = norm(x W_c)`, `k_i = (c A_i, r)`, `v_i = c B_i`, with r a small rotated key that heads
    share. A_i is folded into the queries and B_i into the output, so attention is over c and r:
    one key head of `latent + rotary` channels, whose first `latent` are its value, and nothing
    else is kept.

    >>> layer = LatentKeys(64, heads=8, latent=16, rotary=4, causal=True)
    >>> memory = layer.memory()
    >>> with torch.no_grad():
    ...     _ = layer(torch.randn(1, 10, 64), memory=memory)
    >>> memory.nbytes == 10 * (16 + 4) * 4
    True
    """

    can: ClassVar[Capabilities] = Capabilities()
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "latent": 12, "rotary": 4}

    def __init__(
        self, dim: int, heads: int, *, latent: int, rotary: int = 0,
        query_latent: int | None = None, rotation: Rotation | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "kv_heads", "score", "qk_norm")
        need_size("latent", latent)
        need_size("rotary", rotary, 0)
        self.latent, self.rotary, self.query_latent = latent, rotary, query_latent
        super().__init__(dim, heads, kv_heads=1, **settings)
        if type(self.position).turn is not Position.turn:
            self.cannot(
                "position", f"{self.position}", "rotate whole heads",
                "set rotary= to the number of rotated channels, and rotation= to their schedule",
            )  # fmt: skip
        self.turns = Rotary(rotation)
        self._score = Dot((self.head_dim + rotary) ** -0.5)

    def make_projections(self, bias: bool) -> None:
        """Build the projection to the latent, and those from it for each head."""
        width = self.query_latent or self.dim
        if self.query_latent is not None:
            self.to_query_latent = nn.Linear(self.dim, width, bias)
            self.norm_query = nn.RMSNorm(width)
        self.to_q = nn.Linear(width, self.heads * (self.head_dim + self.rotary), False)
        self.to_latent = nn.Linear(self.context_dim, self.latent + self.rotary, bias)
        self.norm_latent = nn.RMSNorm(self.latent)
        self.of_keys, self.of_values = (
            nn.Parameter(torch.randn(self.heads, size, self.latent) * self.latent**-0.5)
            for size in (self.head_dim, self.value_dim)
        )
        self.to_out = nn.Linear(self.heads * self.value_dim, self.dim, bias)

    def score(self) -> Score:
        """Scale by the width of the full keys."""
        return self._score

    def read(self, input: LayerInput) -> tuple[Tensor, Dense]:
        """Return queries against latents, and the latents."""
        x, memory = input.x, input.memory
        if self.query_latent is not None:
            x = self.norm_query(self.to_query_latent(x))
        plain, turned = split(self.to_q(x), self.heads).split([self.head_dim, self.rotary], -1)
        if self.rotary and not input.crosses:
            turned = self.turns.turn(turned, input.positions)
        q = torch.cat((plain @ self.of_keys, turned), dim=-1)
        if memory is not None and input.crosses and memory.seen:
            return q, self._values(memory.get("keys").read())
        latent, shared = self.to_latent(input.context)[:, None].split(
            [self.latent, self.rotary], -1
        )
        if self.rotary and not input.crosses:
            shared = self.turns.turn(shared, input.positions)
        k = torch.cat((self.norm_latent(latent), shared), dim=-1)
        if memory is None:
            return q, self._values(Dense(k, k, None))
        chosen = None if input.crosses else memory.keys
        kept: KeyMemory = memory.of_kind(
            "keys", Full if chosen is None else lambda: chosen(self.rule())
        )
        kept.extend(k, k[..., :0], input.padding)
        if not input.crosses:
            kept.forget(self.rule().horizon(input.offset))
        return q, self._values(kept.read())

    def _values(self, read: Dense) -> Dense:
        return read.replace(v=read.k[..., : self.latent])

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Project each head's output from latents to values."""
        return super().mix(seen @ self.of_values.mT, input)
