"""Remove heads from the weights of a layer, which makes it smaller, as a gate of 0 does not."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.layers.attention import Attention
from regard.layers.positions import Position, Rotary


@method(
    "sixteen_heads",
    call="import regard\n"
    "from regard.conversions import cut_heads\n"
    "from regard.layers import Attention\n"
    "smaller = cut_heads(Attention(64, heads=4, causal=True), [1, 2])",
)
def cut_heads(layer: Attention, heads: Iterable[int]) -> Attention:
    """Return a layer without some heads; the others are unchanged.

    Heads that share keys are cut together. `regard.probes.importance` ranks heads to cut.
    (Michel et al. 2019)

    >>> layer = Attention(32, heads=4, causal=True)
    >>> smaller = cut_heads(layer, [0])
    >>> smaller.heads, smaller.to_q.weight.shape, smaller(torch.randn(1, 5, 32)).shape
    (3, torch.Size([24, 32]), torch.Size([1, 5, 32]))
    """
    gone = sorted(set(heads))
    left = [h for h in range(layer.heads) if h not in gone]
    if not left or any(not 0 <= h < layer.heads for h in gone):
        fail(
            ValueRangeError, "heads", gone, f"some of {layer.heads} heads, not all of them",
            "count heads from 0, and leave one",
        )  # fmt: skip
    if type(layer) is not Attention or type(layer.position) not in (Position, Rotary):
        found = f"{type(layer).__name__} with position {type(layer.position).__name__}"
        fail(
            CapabilityError, "layer", found,
            "plain attention, whose position is rotary or none",
            "other layers may hold a number for each head: cut those by hand",
        )  # fmt: skip
    group = layer.heads // layer.kv_heads
    shared = sorted({h // group for h in left})
    if len(left) != group * len(shared):
        fail(
            ValueRangeError, "heads", gone, f"whole groups of {group} heads, which share keys",
            "cut all heads of a group, or none",
        )  # fmt: skip
    made = copy.deepcopy(layer)
    made.heads, made.kv_heads, made._fixed = len(left), len(shared), None
    made.to_q = _rows(layer.to_q, left, layer.head_dim)
    made.to_k = _rows(layer.to_k, shared, layer.head_dim)
    made.to_v = _rows(layer.to_v, shared, layer.value_dim)
    made.to_out = _columns(layer.to_out, left, layer.value_dim)
    return made


def _places(heads: list[int], size: int) -> torch.Tensor:
    return (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()


def _rows(old: nn.Linear, heads: list[int], size: int) -> nn.Linear:
    """Take the rows of some heads."""
    made, places = copy.deepcopy(old), _places(heads, size).to(old.weight.device)
    made.weight = nn.Parameter(old.weight.detach()[places])
    if old.bias is not None:
        made.bias = nn.Parameter(old.bias.detach()[places])
    made.out_features = len(places)
    return made


def _columns(old: nn.Linear, heads: list[int], size: int) -> nn.Linear:
    """Take the columns of some heads."""
    made, places = copy.deepcopy(old), _places(heads, size).to(old.weight.device)
    made.weight = nn.Parameter(old.weight.detach()[:, places])
    made.in_features = len(places)
    return made
