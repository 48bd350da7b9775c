"""Controls over pages: a request that is steered is what `regard.steer` makes of its text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import regard
from regard.controls import control
from regard.core.errors import RegardError
from regard.policies.registry import policy
from regard.serving.vllm.request_steering import finds_tokens
from regard.serving.vllm.served_requests import Serving
from regard.serving.vllm.server_settings import Settings
from tests.serving.vllm.over_pages import OverPages, generate, ids, logits, model, served, serving

__all__ = ["ids", "model"]  # fixtures


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    ("control", "asked", "settings"),
    [
        ("emphasis", {"regard_which": [3, 4, 5], "regard_strength": 3}, {"which": [3, 4, 5]}),
        ("emphasis phase=decoded", {"regard_which": [7], "regard_strength": "2"},
         {"which": [7], "phase": "decoded"}),
        ("emphasis which=9 strength=2 where=1", {}, {"which": 9, "where": 1}),
    ],
)  # fmt: skip
def test_a_steered_request_is_that_of_steer(
    model: Any, ids: Tensor, pieces: int, control: str, asked: Any, settings: Any
) -> None:
    strength = float(asked.get("regard_strength", 2))
    with regard.steer(model, "emphasis", strength=strength, **settings) as steered:
        want = generate(model, ids, pieces)
        assert steered.receipt.moved > 0
    one = serving(model, f"steer {control}", ids, regard_steer=True, **asked)
    one.arrive("other", {}, ids[0].tolist())
    assert served(model, one, ids, pieces) == want
    assert one.failures() == {}
    assert one.asks(one.requests["r"], 1, 95)
    assert not one.asks(one.requests["other"], 1, 95)


# Settings of each control that a server runs, as they are written in REGARD.
STEERED = {
    "anchored_options": "options=((3,),(9,))",
    "attention_transition": "many=8 strength=0.5",
    "emphasis": "which=(3,4,5) strength=3",
    "sink_calibration": "times=1.2",
    "split_softmax": "which=(3,4,5) strength=0.3",
    "token_emphasis": "which=(3,4,5) salient=(7,)",
    "vision_heads": "where={'heads':[(1,0)]}",
}


@pytest.mark.parametrize("name", STEERED)
def test_every_control_that_is_served_is_that_of_steer(model: Any, ids: Tensor, name: str) -> None:
    said = Settings.of(f"steer {name} {STEERED[name]}").steer
    assert said is not None
    made = control(name, **said.settings)
    whole = any(finds_tokens(x) for x in made.edits())
    with regard.steer(model, made) as steered:
        want = logits(model, ids, 1)
    assert steered.receipt.moved > 0
    assert not torch.allclose(want, logits(model, ids, 1))
    for pieces in (1, 3):
        one = serving(model, f"steer {name} {STEERED[name]}", ids, regard_steer=True)
        with regard.attach(model, OverPages(one, "r"), check=False):
            got = logits(model, ids, pieces)
        if whole and pieces > 1:  # what it looks for is not in a piece
            assert "a prompt in one piece" in one.failures()["r"]
            continue
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert one.failures() == {}


def test_a_steered_request_may_be_shrunk_too(model: Any, ids: Tensor) -> None:
    with (
        regard.shrink(model, policy("quest"), keep=0.3, check=False),
        regard.steer(model, "emphasis", strength=3.0, which=[3, 4, 5]),
    ):
        want = generate(model, ids)
    said = "shrink quest keep=30%; steer emphasis strength=3"
    one = serving(model, said, ids, regard_steer=1, regard_which=[3, 4, 5])
    assert served(model, one, ids) == want
    assert one.failures() == {}


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("steer emphasiss", "emphasis"),
        ("steer attentive_eraser", "a control that reads"),
        ("steer", "without a control"),
    ],
)
def test_a_control_that_a_server_cannot_run_is_refused(said: str, named: str) -> None:
    with pytest.raises(RegardError, match=named):
        Serving(Settings.of(said))


def test_each_control_is_served_or_refused_with_its_reason() -> None:
    from regard.controls import known as controls
    from regard.serving.vllm.request_steering import check_control
    from regard.serving.vllm.server_settings import Steer

    served_, refused = set(), {}
    for name, kind in controls().items():
        try:
            check_control(Steer(name))
            served_.add(kind.name)
        except RegardError as error:
            refused[kind.name] = str(error)
    assert served_ == set(STEERED)  # each of which has a test above
    assert refused
    assert all("a control that reads" in x for x in refused.values())


def test_a_server_that_does_not_steer_says_so(model: Any, ids: Tensor) -> None:
    one = serving(model, "shrink quest", ids, regard_steer=True)
    assert "a server that steers" in one.failures()["r"]
