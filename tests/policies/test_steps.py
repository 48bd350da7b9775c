"""Steps after a prompt take short cuts: what they give is what the long way gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.memories import HeadPages
from regard.models import Null
from regard.models.attach import attach
from regard.policies import policy
from tests.architectures import sharp_llama

STEPS = 40
IDS = torch.randint(5, 60, (1, 150 + STEPS), generator=torch.Generator().manual_seed(0))
NAMES = ("knorm", "random", "snapkv", "ada_kv", "pyramid_kv", "streaming", "tova", "h2o", "quest",
         "double_sparsity", "quantized")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(3)


@torch.no_grad()
def stepped(model: Any, name: Any, keep: Any, **settings: Any) -> tuple[torch.Tensor, list[Any]]:
    """Logits of steps after a prompt, and what each layer keeps at each."""
    cut, found, kept = IDS.shape[1] - STEPS, [], []
    made = policy(name, **settings) if isinstance(name, str) else name
    with regard.shrink(model, made, keep=keep, check=False):
        cache = model(IDS[:, :cut]).past_key_values
        for t in range(cut, IDS.shape[1]):
            found.append(model(IDS[:, t : t + 1], past_key_values=cache).logits)
            memories = [layer.memory for layer in cache.layers]
            kept.append([getattr(m, "counts", torch.zeros(1)).float().mean() for m in memories])
    return torch.cat(found, 1), kept


@pytest.mark.parametrize("keep", [0.4, 100])
@pytest.mark.parametrize("name", NAMES)
def test_short_cuts_give_what_the_long_way_gives(name: str, keep: Any, model: Any) -> None:
    alone, _ = stepped(model, name, keep)
    with attach(model, [Null()], check=False):  # a stage beside it is shown every call
        beside, _ = stepped(model, name, keep)
    torch.testing.assert_close(alone, beside, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["streaming", "tova", "h2o"])
@pytest.mark.parametrize("keep", [0.4, 100])
def test_no_step_passes_the_budget(name: str, keep: Any, model: Any) -> None:
    _, kept = stepped(model, name, keep)
    for step, layers in enumerate(kept, start=IDS.shape[1] - STEPS + 1):
        allowed = -(-step * 4 // 10) if keep == 0.4 else keep
        least = allowed - max(allowed // 64, min(4, allowed // 8)) - 1
        assert all(least <= float(count) <= allowed for count in layers if float(count))


@pytest.mark.parametrize("name", ["streaming", "tova", "h2o"])
@pytest.mark.parametrize("keep", [0.4, 100])
def test_prompts_alone_may_be_evicted(name: str, keep: Any, model: Any) -> None:
    prompt = IDS.shape[1] - STEPS
    allowed = -(-prompt * 4 // 10) if keep == 0.4 else keep
    _, kept = stepped(model, policy(name).inner, keep)
    assert [float(x) for x in kept[-1]] == [allowed + STEPS] * len(kept[-1])


@pytest.mark.parametrize("keep", [0.4, 100])
def test_heads_in_pages_are_heads_in_groups(keep: Any, model: Any) -> None:
    groups, _ = stepped(model, "ada_kv", keep, pages=False)
    pages, _ = stepped(model, "ada_kv", keep, pages=True)
    torch.testing.assert_close(pages, groups, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_steps_read_pages_in_place(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with regard.shrink(model, policy("ada_kv", pages=True), keep=0.4, check=False):
        cache = model(IDS[:, :100]).past_key_values
        monkeypatch.setattr(HeadPages, "read", None)
        model(IDS[:, 100:101], past_key_values=cache)
