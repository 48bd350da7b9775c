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
from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.key_forms import Paged
from regard.core.result import Result
from regard.models.attach import hook_of
from regard.models.stage import Stage
from regard.policies.registry import known, policy
from regard.policies.selecting import Quest
from regard.run.runner import otherwise
from regard.serving.vllm.layer_rules import LayerRules
from regard.serving.vllm.paged_policies import can_serve, paged_policy, why_not_paged
from regard.serving.vllm.request_lookback import SUFFIX
from regard.serving.vllm.served_requests import Serving, Setup
from regard.serving.vllm.server_settings import Settings, Shrink
from regard.views.run_file import Run
from tests.architectures import DECODERS, build

PAGE = 16
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


class OverPages(Stage):
    """Run every call as a server would: over pages, past what its request asked for."""

    runs = True

    def __init__(self, serving: Serving, name: str) -> None:
        super().__init__()
        self.serving, self.name_of = serving, name

    def around(self, call: Call, run: Any) -> Result:
        k, v = (in_pages(x) for x in (call.k, call.v))
        pages = torch.randperm(len(k[0]), generator=torch.Generator().manual_seed(call.m))
        table = pages.argsort()[None, None].int()
        keys = Paged(k[0][pages], v[0][pages], table, torch.tensor([[call.m]]), longest=call.m)
        rules = LayerRules(call.d**-0.5)
        one = Call(call.q, keys, rules.of(call.n, call.m), site=call.site)
        served = self.serving.requests[self.name_of]
        found = otherwise(call, "served", lambda: self.serving.attend(one, served, rules))
        assert found is not None
        return found


def in_pages(x: Tensor) -> Tensor:
    """Cut x [1, g, m, d] into pages [1, pages, g, PAGE, d]; what fills the last one up is NaN."""
    short = -x.shape[2] % PAGE
    filled = torch.nn.functional.pad(x, (0, 0, 0, short), value=torch.nan)
    return filled.unflatten(2, (-1, PAGE)).transpose(1, 2)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


@pytest.fixture
def ids(model: Any) -> Tensor:
    return torch.randint(3, model.config.vocab_size, (1, 90))


def serving(model: Any, said: str, ids: Tensor, **asked: Any) -> Serving:
    made = Serving(Settings.of(said))
    made.begin(model, hook_of(model)[1], Setup())
    made.arrive("r", asked, ids[0].tolist())
    return made


def generate(model: Any, ids: Tensor, pieces: int = 1, tokens: int = 12) -> list[int]:
    """Decode greedily; the prompt comes in pieces."""
    from transformers import DynamicCache

    cache, said = DynamicCache(), []
    with torch.no_grad():
        for piece in ids.tensor_split(pieces, 1):
            logits = model(piece, past_key_values=cache).logits
        for _ in range(tokens):
            said.append(int(logits[0, -1].argmax()))
            logits = model(torch.tensor([said[-1:]]), past_key_values=cache).logits
    return said


def served(model: Any, one: Serving, ids: Tensor, pieces: int = 1) -> list[int]:
    with regard.attach(model, OverPages(one, "r"), check=False):
        return generate(model, ids, pieces)


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
    assert "emphasis" in served_
    assert refused
    assert all("a control that reads" in x for x in refused.values())


def test_a_server_that_does_not_steer_says_so(model: Any, ids: Tensor) -> None:
    one = serving(model, "shrink quest", ids, regard_steer=True)
    assert "a server that steers" in one.failures()["r"]


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
