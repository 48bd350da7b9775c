"""Modules that attend through PyTorch, and what to compare of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models import Stage

ROOM = 2e-6


class Plain(nn.Module):
    """The attention of a notebook: one projection, heads, a causal product."""

    def __init__(self, kind: str = "causal") -> None:
        super().__init__()
        self.n_head, self.kind = 4, kind
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.bias = nn.Parameter(torch.randn(1, 4, 7, 7))

    def forward(self, x: Tensor, fails: bool = False) -> Tensor:
        b, n, c = x.shape
        q, k, v = (y.view(b, n, 4, 8).transpose(1, 2) for y in self.c_attn(x).chunk(3, -1))
        if self.kind == "three axes":
            q, k, v = (y.reshape(b * 4, n, 8) for y in (q, k, v))
        masks: dict[str, Any] = {
            "causal": {"is_causal": True},
            "three axes": {"scale": 0.3},
            "bias": {"attn_mask": self.bias},
            "grouped": {"enable_gqa": True},
            "padded": {
                "attn_mask": torch.arange(n).view(1, 1, 1, n)
                < torch.tensor([5, 7]).view(2, 1, 1, 1)
            },
            "mask": {"attn_mask": torch.ones(n, n).tril().bool()},
        }
        if self.kind == "grouped":
            k, v = k[:, :2], v[:, :2]
        y = F.scaled_dot_product_attention(q, k, v, **masks[self.kind])
        if fails:
            raise KeyError("told to")
        return self.c_proj(y.reshape(b, 4, n, 8).transpose(1, 2).reshape(b, n, c))


KINDS = ("causal", "three axes", "bias", "grouped", "padded", "mask")


def tokens() -> Tensor:
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def state_of(model: nn.Module) -> list[Any]:
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ] + [torch.backends.mha.get_fastpath_enabled()]


class Gpt(nn.Module):
    """A small GPT as one writes it by hand: embeddings, blocks, a head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, 32), nn.Embedding(16, 32)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(32), "attn": Plain(), "mlp": nn.Linear(32, 32)})
            for _ in range(layers)
        )
        self.head = nn.Linear(32, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + block["attn"](block["norm"](x))
            x = x + F.gelu(block["mlp"](x))
        logits: Tensor = self.head(x)
        return logits


class Twice(nn.Module):
    """Attends twice in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, x)
        return F.scaled_dot_product_attention(y, x, x, is_causal=True)


class Note(Stage):
    """Writes down the sites it is asked at."""

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.sites: list[Any] = []

    def before(self, call: Any) -> Any:
        self.sites.append(call.site)
        return call
