"""Continuous batching of transformers: each request is what it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.policies.registry import policy
from regard.serving import generate_batch
from regard.views.run_file import Run
from tests.architectures import DECODERS, build

TOKENS = 8


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = build("llama", DECODERS["llama"], causal=True)
    made.generation_config.eos_token_id = -1
    made.generation_config.pad_token_id = 0
    return made


@pytest.fixture
def prompts(model: Any) -> list[list[int]]:
    sizes = (60, 17, 90, 5)
    return [torch.randint(3, model.config.vocab_size, (n,)).tolist() for n in sizes]


def alone(model: Any, ids: list[int]) -> list[int]:
    given = torch.tensor([ids])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=TOKENS, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    found: list[int] = out[0, len(ids) :].tolist()
    return found


def ask(model: Any, prompts: list[list[int]], *said: Any) -> list[Any]:
    """Ask by a cache that is small, in batches of 64 tokens: prompts come in pieces."""
    from transformers import ContinuousBatchingConfig

    small = ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64)
    return generate_batch(
        model, prompts, *said, max_new_tokens=TOKENS, continuous_batching_config=small
    )


def together(model: Any, prompts: list[list[int]], *said: Any) -> list[list[int]]:
    answers = ask(model, prompts, *said)
    assert [x.error for x in answers] == [None] * len(prompts)
    return [x.generated_tokens for x in answers]


def test_each_request_is_what_it_is_alone(model: Any, prompts: list[list[int]]) -> None:
    want = [alone(model, ids) for ids in prompts]
    assert together(model, prompts, "off") == want
    assert together(model, prompts) == want


@pytest.mark.parametrize(
    ("said", "name", "keep"),
    [("quest keep=30%", "quest", 0.3), ("streaming keep=16", "streaming", 16)],
)
def test_a_policy_is_that_of_shrink(
    model: Any, prompts: list[list[int]], said: str, name: str, keep: Any
) -> None:
    plain = [alone(model, ids) for ids in prompts]
    with regard.shrink(model, policy(name), keep=keep, check=False) as shrunk:
        want = [alone(model, ids) for ids in prompts]
        spent = list(shrunk.stage.costs.values())
    assert sum(x.flops for x in spent) < sum(x.dense for x in spent)  # it did leave keys out
    want[1] = plain[1]  # it declines
    asked = [None, {"regard_shrink": False}, None, None]
    assert together(model, prompts, f"shrink {said}", asked) == want


def test_a_survey_is_that_of_see(model: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    asked = [{"regard_see": True}, None, {"regard_see": 1}, None]
    together(model, prompts, f"see out={tmp_path} probes=sinks,shape", asked)
    assert sorted(x.stem for x in tmp_path.glob("*.npz")) == ["req_0", "req_2"]
    ours = Run.load(tmp_path / "req_2.npz")
    theirs = regard.see(model, torch.tensor([prompts[2]]), ["sinks", "shape"]).run()
    for name in ("scores/entropy", "scores/sink"):
        got, want = (torch.from_numpy(x.arrays[name]) for x in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_request_is_steered_and_no_other(model: Any, prompts: list[list[int]]) -> None:
    want = [alone(model, ids) for ids in prompts]
    with regard.steer(model, "emphasis", which=[2, 3], strength=4.0):
        want[0] = alone(model, prompts[0])
    asked = [{"regard_steer": True, "regard_which": [2, 3]}, None, None, None]
    assert together(model, prompts, "steer emphasis strength=4", asked) == want


def test_a_request_that_cannot_be_served_says_why(model: Any, prompts: list[list[int]]) -> None:
    asked = [None, {"regard_see": True}, None, None]
    answers = ask(model, prompts, "on; shrink quest", asked)
    assert [x.error is not None for x in answers] == [False, True, False, False]
    assert "a server that surveys" in answers[1].error


@pytest.mark.parametrize(
    ("said", "why"), [("shrink a_shape", "into chunks"), ("shrink snapkv", "evicts")]
)
def test_what_cannot_be_is_said_before(
    model: Any, prompts: list[list[int]], said: str, why: str
) -> None:
    with pytest.raises(RegardError, match=why):
        ask(model, prompts, said)


def test_an_attached_model_is_refused_and_nothing_stays(
    model: Any, prompts: list[list[int]]
) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with regard.shrink(model, "quest"), pytest.raises(RegardError, match="no stages"):
        ask(model, prompts, "on")
    with pytest.raises(RegardError, match="one a prompt"):
        ask(model, prompts, "on", [None])
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
