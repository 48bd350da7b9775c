"""One road: under every policy, alone and beside a probe, every call of attention is in a plan."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from regard.models import Stage
from regard.models.attach import attach
from regard.policies.shrinking import Shrinking
from regard.run.counting import COUNT, recording
from regard.run.plan import EXECUTORS
from tests.architectures import sharp_llama
from tests.policies.test_laws import every, prepared

LAYERS, TOKENS, LENGTH = 2, 20, 40
IDS = torch.randint(5, 60, (1, LENGTH), generator=torch.Generator().manual_seed(2))


class Look(Stage):
    """A probe that asks for nothing but to see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def see(self, call: Any, result: Any) -> None:
        """Note the call, which came with its result."""
        assert result.out.shape[:3] == call.q.shape[:3]
        self.seen.append((call.site.layer, call.n))


class Outside(TorchDispatchMode):
    """Note kernels of attention that are called outside of the runner."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.__name__ and not COUNT.depth:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(LAYERS)


# Policies that read the prompt once more, and how often: that is how they choose.
AGAIN = {"kvzip": 1}


def run_of(model: Any, name: str, beside: list[Stage]) -> tuple[list[Any], torch.Tensor]:
    """Decode under a policy; return what was run, call by call, and the tokens."""
    shrinking = Shrinking([prepared(name, model)], 0.5)
    outside = Outside()
    with (
        attach(model, [shrinking, *beside], check=False), torch.no_grad(),
        recording() as ran, outside,
    ):  # fmt: skip
        made = model.generate(
            IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=TOKENS + 1, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert not outside.found
    return ran, made


@every
def test_every_token_takes_the_same_road_alone_and_beside_a_probe(name: str, model: Any) -> None:
    ran, made = run_of(model, name, [])
    found = [(x.call.site.layer, x.call.n, x.result.executor) for x in ran if x.call.site]
    steps = Counter((layer, n) for layer, n, _ in found)
    prompts = 1 + AGAIN.get(name, 0)
    assert steps == {(layer, n): TOKENS if n == 1 else prompts for layer in range(LAYERS)
                     for n in (1, LENGTH)}  # fmt: skip
    assert {who for _, _, who in found} <= {*EXECUTORS, name}
    assert all(x.result.cost.flops > 0 for x in ran)
    look = Look()
    again, same = run_of(model, name, [look])
    assert torch.equal(made, same)
    assert [(x.call.site.layer, x.call.n, x.result.executor) for x in again if x.call.site] == found
    assert look.seen == [(layer, n) for layer, n, _ in found]
