"""Double sparsity: a few channels of each head select the keys to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.method import method
from regard.core.result import Result
from regard.memories.stores import Plain, TokenStore
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.calibration import run_texts
from regard.policies.kinds import Calibrated
from regard.policies.registry import register
from regard.policies.selecting import Selecting
from regard.run.counting import multiply


@register("double_sparsity")
@method("double_sparsity", call='from regard.policies import policy; policy("double_sparsity")')
@dataclass
class DoubleSparsity(Selecting, Calibrated):
    """Read the keys with the best scores on a few channels, kept in a small cache.

    Channels c of each head by mean |q_c k_c|, `channels` of them (a share of the head size);
    s_j = sum over these of q_c k_jc; the best over the query heads of a key head. The channels are
    found once on other texts: `regard.policies.calibrate(model, "double_sparsity", texts, to=...)`
    with texts as ids [1, n]. Without a calibration each prompt selects its own. `random_channels`
    draws them at random. (Double Sparsity, Yang et al. 2024)
    """

    needed: ClassVar[bool] = False
    channels: float = 0.25
    random_channels: bool = False
    # The channels of each layer's key heads, the largest first: [g, d].
    ranked: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def index(self) -> TokenStore:
        """Build the store of labels (selected channels)."""
        return Plain()

    def seen_by_index(self, step: Step, k: Tensor) -> Tensor:
        """Select the chosen channels: calibrated ones, or those of the first prompt."""
        layer = step.layer
        assert layer is not None
        chosen = layer.extra.get(f"{self.name} channels")
        if chosen is None:
            chosen = Plain()
            chosen.append(self.chosen(step)[:, :, None])
            layer.extra[f"{self.name} channels"] = chosen
        at = chosen.read().expand(-1, -1, k.shape[2], -1)
        return k.gather(3, at)

    def chosen(self, step: Step) -> Tensor:
        """Rank channels by the mean size of their products: [b, g, r]."""
        call = step.call
        r = max(1, round(self.channels * call.d))
        ranked = self.ranked.get(call.site.layer or 0)
        if self.random_channels:
            draw = torch.Generator().manual_seed(0)
            ranked = torch.rand(call.g, call.d, generator=draw).argsort(-1)
        if ranked is not None:
            order = ranked[:, :r].to(call.k.device)
            return order.expand(call.b, -1, -1).contiguous()
        return products(call, step.positions >= 0).topk(r, dim=-1).indices

    def worth(self, step: Step, index: Plain) -> Tensor:
        """Score by the labels."""
        call, layer = step.call, step.layer
        assert layer is not None
        labels = index.read()
        at = layer.extra[f"{self.name} channels"].read()
        q = call.q[:, :, 0].unflatten(1, (call.g, -1))
        # In float32, as scores of few bits tie.
        q = q.gather(3, at.expand(-1, -1, q.shape[2], -1)).float()
        worth = multiply(q, labels.float().transpose(2, 3))
        worth = worth[:, :, 0] if worth.shape[2] == 1 else worth.amax(2)
        worth[..., -1] = torch.finfo(worth.dtype).max
        return worth

    # Calibration

    def learn(
        self, model: Any, inputs: Sequence[Tensor], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Sum the sizes of products over texts; yield progress after each."""
        sizes = _Sizes({int(layer): x for layer, x in state.get("sizes", {}).items()})
        yield from run_texts(model, inputs, state, sizes, keep, lambda: {"sizes": sizes.sums})
        self.ranked = {layer: x.argsort(-1, descending=True) for layer, x in sizes.sums.items()}

    def found(self) -> dict[str, Any]:
        """Return the channels of each layer's key heads, the largest first."""
        return {"channels": self.ranked}

    def take(self, found: dict[str, Any]) -> None:
        """Load the channels."""
        self.ranked = {int(layer): x for layer, x in found["channels"].items()}


def products(call: Call, real: Tensor) -> Tensor:
    """Return sum |q_c| times sum |k_c| of each channel, [b, g, d]; `real` [b, g, m] marks tokens.

    >>> q = torch.tensor([1.0, -2.0]).expand(1, 1, 3, 2)
    >>> products(Call.of(q, q, q), torch.ones(1, 1, 3, dtype=torch.bool)).tolist()
    [[[9.0, 36.0]]]
    """
    known = real[..., None]
    q = call.q.float().abs().unflatten(1, (call.g, -1)).mean(2) * known[:, :, call.m - call.n :]
    return q.sum(2) * (call.k.float().abs() * known).sum(2)


class _Sizes(Stage):
    """Sums of products over texts, [g, d] for each layer."""

    def __init__(self, sums: dict[int, Tensor]) -> None:
        super().__init__()
        self.sums = sums

    def see(self, call: Call, result: Result) -> None:
        """Add those of one text, per token, so that texts of all lengths count alike."""
        real = torch.ones(call.b, call.g, call.m, dtype=torch.bool, device=call.k.device)
        own = products(call, real).mean(0).cpu() / (call.n * call.m)
        layer = call.site.layer or 0
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(own)) + own
