"""What a policy is said to cost is what PyTorch's own counter sees at the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers")

from regard.models.attach import attach
from regard.models.engine import Engine
from regard.policies.shrinking import Shrinking
from tests.architectures import sharp_llama
from tests.policies.test_laws import every, prepared
from tests.run.test_cost import WITHIN, formulas

IDS = torch.randint(5, 60, (1, 256), generator=torch.Generator().manual_seed(2))
# In place of the settings at which they lose nothing.
LOSSY: dict[str, dict[str, Any]] = {
    "quantized": {"residual": 8, "group": 8},
    "low_rank": {"rank": 0.5},
}
# Workers attend in processes of their own, where no counter of this one sees them.
ELSEWHERE = {"remote_attention"}


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(2)


@every
def test_every_policy_costs_what_is_counted(
    name: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    formulas()
    kernels, plain = [0.0], Engine.result

    def seen(self: Engine, *given: Any) -> Any:
        counter = FlopCounterMode(display=False)
        with counter:
            found = plain(self, *given)
        kernels[0] += counter.get_total_flops()
        return found

    monkeypatch.setattr(Engine, "result", seen)
    shrinking = Shrinking([prepared(name, model, **LOSSY.get(name, {}))], 0.25)
    cache = None
    with torch.no_grad(), attach(model, [shrinking], check=False):
        for ids in (IDS, *IDS[:, :3].split(1, 1)):  # a prompt, and three steps
            before, kernels[0] = total(shrinking), 0.0
            cache = model(ids, past_key_values=cache, use_cache=True).past_key_values
            (ours, dense), theirs = total(shrinking), kernels[0]
            ours, dense = ours - before[0], dense - before[1]
            if name in ELSEWHERE:
                theirs = dense  # which is what workers compute for it
            assert theirs > 0
            assert abs(ours - theirs) <= WITHIN * theirs, (ids.shape[1], ours, theirs)


def total(shrinking: Shrinking) -> tuple[float, float]:
    """FLOPs that were counted so far at all sites, and those of the whole model."""
    spent = shrinking.costs.values()
    return sum(x.flops for x in spent), sum(x.dense for x in spent)
