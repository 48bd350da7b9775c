"""A step of a model without stages calls the attention that was there, and is counted as ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import AttentionInterface  # noqa: E402

from regard.models import Null, attach  # noqa: E402
from regard.run.counting import counted, recording  # noqa: E402
from tests.architectures import DECODERS, build  # noqa: E402

IDS = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
LAYERS, STEPS = 2, 3


def steps(model: Any, **given: Any) -> list[Any]:
    """Run a prompt, then some steps."""
    made = []
    with torch.no_grad():
        out = model(IDS, use_cache=True, **given)
        for _ in range(STEPS):
            if "attention_mask" in given:
                mask = given["attention_mask"]
                given["attention_mask"] = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)
            out = model(IDS[:, :1], past_key_values=out.past_key_values, use_cache=True, **given)
            made.append(out)
    return made


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Single steps for which the attention that was there is called."""
    found: list[Any] = []
    plain = AttentionInterface._global_mapping["sdpa"]

    def note(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.shape[2] == 1:  # attaching compares a few tokens with the bare model
            found.append(query.shape)
        return plain(module, query, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", note)
    return found


@pytest.fixture
def model() -> Any:
    model = build("llama", DECODERS["llama"], causal=True)
    model.set_attn_implementation("sdpa")
    assert model.config.num_hidden_layers == LAYERS
    return model


def test_a_step_calls_what_was_there_and_is_counted(model: Any, theirs: list[Any]) -> None:
    bare = [x.logits for x in steps(model)]
    theirs.clear()
    with attach(model):
        before = counted()
        ours = [x.logits for x in steps(model)]
        own, calls = counted().less(before), len(theirs)
        before = counted()
        with recording() as ran:
            steps(model)
        assert (len(theirs), len(ran)) == (calls, LAYERS * (1 + STEPS))
        assert counted().less(before) == own
    assert calls == LAYERS * STEPS  # prompts are run by us
    # The prompts may differ in rounding, and so the steps.
    for a, b in zip(ours, bare, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_whoever_asks_for_weights_gets_them(model: Any, theirs: list[Any]) -> None:
    with attach(model):
        for out in steps(model, output_attentions=True):
            assert all(x is not None and x.shape[2] == 1 for x in out.attentions)
    assert not theirs


def test_padding_and_stages_and_other_attentions_go_our_way(model: Any, theirs: list[Any]) -> None:
    real = torch.ones_like(IDS)
    real[0, :3] = 0
    with attach(model):
        padded = steps(model, attention_mask=real)
    with attach(model, [Null()]):
        steps(model)
    model.set_attn_implementation("eager")
    with attach(model):
        steps(model)
    assert not theirs
    model.set_attn_implementation("sdpa")
    for a, b in zip(padded, steps(model, attention_mask=real), strict=True):
        torch.testing.assert_close(a.logits[1], b.logits[1], atol=1e-5, rtol=1e-5)


def test_a_model_in_a_forward_of_another_is_served_by_its_own_stages(model: Any) -> None:
    """Steps of one that has no stages inside of a forward of one that has."""
    other = build("llama", DECODERS["llama"], causal=True)
    seen: list[Any] = []

    class Inside(Null):
        def before(self, call: Any) -> Any:
            seen.append(call.site)
            if len(seen) == 1:
                steps(other)
            return call

    with attach(model, [Inside()]), attach(other), torch.no_grad():
        model(IDS)
    assert len(seen) == LAYERS
