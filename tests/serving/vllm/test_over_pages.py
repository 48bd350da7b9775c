"""Policies and surveys over pages: what a server does with them, on a model of transformers.

No vLLM is needed: a stage puts the keys of each call into pages of a shuffled pool, and runs it
as `regard.serving.vllm` does. `test_in_vllm.py` shows the same inside vLLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.models.attach import hook_of
from regard.policies.registry import known, policy
from regard.policies.selecting import Quest
from regard.serving.vllm.layer_rules import LayerRules
from regard.serving.vllm.paged_policies import can_serve, paged_policy, why_not_paged
from regard.serving.vllm.request_lookback import SUFFIX
from regard.serving.vllm.served_requests import Serving, Setup
from regard.serving.vllm.server_settings import Settings, Shrink
from regard.views.run_file import Run
from tests.architectures import DECODERS, build
from tests.serving.vllm.over_pages import OverPages, generate, ids, model, served, serving

__all__ = ["ids", "model"]  # fixtures

POLICIES = {
    "quest": ("quest keep=25%", 0.25, {}),
    "quest of small pages": ("quest keep=40 page=4 logical=2", 40, {"page": 4, "logical": 2}),
    "recycled": ("recycled keep=25% every=3", 0.25, {"every": 3}),
    "double_sparsity": ("double_sparsity keep=30%", 0.3, {}),
    "streaming": ("streaming keep=24", 24, {}),
    "streaming of bytes": ("streaming keep=8KiB sinks=2", "8KiB", {"sinks": 2}),
    "a_shape": ("a_shape keep=40% block=8", 0.4, {"block": 8}),
    "vertical_slash": ("vertical_slash keep=50% block=8", 0.5, {"block": 8}),
    "block_sparse": ("block_sparse keep=40% block=8", 0.4, {"block": 8}),
}


@pytest.mark.parametrize("pieces", [1, 4])
def test_over_pages_nothing_changes(model: Any, ids: Tensor, pieces: int) -> None:
    want = generate(model, ids)
    for said in ("on", "shrink quest keep=100%", "shrink streaming keep=4000"):
        assert served(model, serving(model, said, ids), ids, pieces) == want


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_over_pages_is_that_of_shrink(model: Any, ids: Tensor, name: str) -> None:
    said, keep, settings = POLICIES[name]
    with regard.shrink(model, policy(said.split()[0], **settings), keep=keep, check=False):
        want = generate(model, ids)
    one = serving(model, f"shrink {said}", ids)
    assert served(model, one, ids) == want
    assert not one.failures()


@pytest.mark.parametrize("name", ["quest", "streaming", "recycled"])
def test_these_do_not_care_how_a_prompt_comes(model: Any, ids: Tensor, name: str) -> None:
    said = POLICIES[name][0]
    whole = served(model, serving(model, f"shrink {said}", ids), ids)
    assert served(model, serving(model, f"shrink {said}", ids), ids, pieces=5) == whole


@pytest.mark.parametrize("name", ["quest", "quest of small pages", "streaming"])
def test_the_last_token_of_a_prompt_is_no_step(model: Any, ids: Tensor, name: str) -> None:
    one = serving(model, f"shrink {POLICIES[name][0]}", ids)
    with torch.no_grad():
        want = model(ids).logits[0, -1]
        with regard.attach(model, OverPages(one, "r"), check=False):
            cache = model(ids[:, :-1], use_cache=True).past_key_values
            got = model(ids[:, -1:], past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(got, want)


def test_a_request_that_begins_again_is_served_as_one_that_begins(model: Any, ids: Tensor) -> None:
    one = serving(model, "shrink quest keep=25%", ids)
    first = served(model, one, ids)
    assert served(model, one, ids) == first  # the same request: its pages were taken from it


def test_bytes_beside_the_pages_are_counted(model: Any, ids: Tensor) -> None:
    one = serving(model, "shrink quest keep=25%", ids)
    assert one.policy_bytes == 0
    served(model, one, ids)
    config, pages = model.config, (ids.shape[1] + 11) // 16  # of 12 tokens the last is not read
    held = config.num_hidden_layers * config.num_key_value_heads * pages * 2 * config.head_dim * 4
    assert one.policy_bytes >= held  # what room there is for more is held as well
    rows = [x.extra["quest"].read() for x in one.requests["r"].layers.values()]
    assert sum(x.numel() * x.element_size() for x in rows) == held
    one.leave("r")
    assert one.policy_bytes == 0


def test_a_request_may_decline(model: Any, ids: Tensor) -> None:
    want = generate(model, ids)
    one = serving(model, "shrink quest keep=20", ids, regard_shrink="off")
    assert served(model, one, ids) == want


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_survey_of_a_request_is_that_of_see(
    model: Any, ids: Tensor, pieces: int, tmp_path: Path
) -> None:
    said = f"see out={tmp_path} probes=sinks,shape"
    one = serving(model, said, ids, regard_see=True)
    served(model, one, ids, pieces)
    assert one.failures() == {}
    ours, theirs = Run.load(one.written[0]), regard.see(model, ids, ["sinks", "shape"]).run()
    compared = 0
    for name, want in theirs.arrays.items():
        if name.startswith(("scores/", "entropy/", "received/")):
            got = torch.from_numpy(ours.arrays[name]).double()
            tight = {"rtol": 0, "atol": 1e-3 if want.dtype == "float16" else 1e-5}
            torch.testing.assert_close(
                got, torch.from_numpy(want).double(), equal_nan=True, **tight
            )
            compared += 1
    assert compared > 6


@pytest.mark.parametrize("said", ["", "shrink quest keep=25%; "])
def test_lookback_ratios_are_those_of_the_weights(
    model: Any, ids: Tensor, said: str, tmp_path: Path
) -> None:
    one = serving(model, f"{said}see out={tmp_path} probes=sinks", ids, regard_see=True)
    made = served(model, one, ids, 3)
    one.leave("r")
    rows = json.loads((tmp_path / f"r{SUFFIX}").read_text())
    assert rows["tokens"] == len(made)
    if said:
        return  # what a policy hides from a step is looked at as well, by queries of its own
    whole, n = torch.cat((ids, torch.tensor([made])), 1), ids.shape[1]
    eager = build("llama", {**DECODERS["llama"], "attn_implementation": "eager"}, causal=True)
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        weights = eager(whole, output_attentions=True).attentions
    for row, x in zip(rows["lookback"], weights, strict=True):
        at = torch.arange(n, whole.shape[1])
        p = x[0, :, n:, :n].double().mean(-1)
        a = x[0, :, n:, n:].double().sum(-1) / (at - n + 1)
        want = (p / (p + a)).mean(-1)
        torch.testing.assert_close(torch.tensor(row["heads"]).double(), want, rtol=0, atol=1e-5)


def test_half_of_the_heads_are_not_surveyed_as_all(model: Any) -> None:
    one = Serving(Settings.of("see out=runs"))
    with pytest.raises(RegardError, match="2 processes"):
        one.begin(model, hook_of(model)[1], Setup(processes=2))


def test_a_request_that_does_not_ask_leaves_no_trace(
    model: Any, ids: Tensor, tmp_path: Path
) -> None:
    one = serving(model, f"see out={tmp_path}", ids)
    assert served(model, one, ids) == generate(model, ids)
    assert not list(tmp_path.iterdir())
    one.leave("r")
    assert not one.requests


class Raises(Quest):
    """Breaks when a text has grown."""

    def quickly(self, step: Any, index: Any, count: int) -> Any:
        if step.seen > 95:
            raise ZeroDivisionError("a bad policy")
        return super().quickly(step, index, count)


def test_a_policy_that_raises_ends_its_request_alone(model: Any, ids: Tensor) -> None:
    one = serving(model, f"shrink {__name__}:Raises keep=25%", ids)
    one.arrive("other", {}, [3, 4])
    assert len(served(model, one, ids)) == 12
    assert one.failures() == {"r": "regard: ZeroDivisionError: a bad policy"}
    assert one.stage is not None
    assert one.stage._steps.held == []
    one.leave("r")
    assert one.failures() == {}


def test_every_policy_is_served_or_refused_with_its_reason() -> None:
    served_, refused = set(), {}
    for name, kind in known().items():
        try:
            one = policy(name)
        except (RegardError, TypeError):
            continue
        if "streaming" in (name, kind.name):
            continue
        reason = why_not_paged(one)
        if reason:
            refused[kind.name] = reason
            with pytest.raises(RegardError, match="a policy that"):
                paged_policy(Shrink(name))
        else:
            served_.add(kind.name)
    assert {"quest", "double_sparsity", "recycled", "a_shape", "block_sparse"} <= served_
    assert {"snapkv", "h2o", "tova", "knorm", "ada_kv", "quantized", "duo_attention"} <= set(
        refused
    )
    assert "evicts" in refused["snapkv"]
    assert "stores" in refused["quantized"]


@pytest.mark.parametrize(
    ("name", "setup", "said"),
    [
        ("a_shape", {"caches_prefixes": True}, "no-enable-prefix-caching"),
        ("double_sparsity", {"chunks": True}, "no-enable-chunked-prefill"),
        ("quest", {"guesses": True}, "speculative"),
        ("quest", {"chunks": True, "caches_prefixes": True}, ""),
    ],
)
def test_a_server_that_is_set_up_otherwise_is_told(
    name: str, setup: dict[str, bool], said: str
) -> None:
    flags = {"chunks": False, "caches_prefixes": False, "guesses": False, **setup}
    answer = can_serve(paged_policy(Shrink(name)), **flags)
    assert bool(answer) == (not said)
    assert said in getattr(answer, "reason", "")


def test_streaming_of_a_share_is_refused() -> None:
    with pytest.raises(RegardError, match="a number of tokens"):
        paged_policy(Shrink("streaming", {}, 0.5))


def test_rules_of_a_layer_are_causal() -> None:
    slopes, sinks = torch.rand(4), torch.randn(4)
    for rules in (
        LayerRules(0.3), LayerRules(0.3, window=7), LayerRules(0.3, soft_cap=5.0),
        LayerRules(0.3, slopes=slopes), LayerRules(0.3, window=5, sinks=sinks),
    ):  # fmt: skip
        q, k, v = torch.randn(3, 1, 4, 20, 8).unbind(0)
        whole = regard.attend(q, k, v, rules.of(20, 20))
        for n, seen in ((1, 20), (1, 4), (6, 20), (3, 9)):
            first = rules.first_needed(n, seen)
            at = slice(first, seen)
            got = regard.attend(
                q[:, :, seen - n : seen], k[:, :, at], v[:, :, at], rules.of(n, seen - first)
            )
            torch.testing.assert_close(got, whole[:, :, seen - n : seen])
