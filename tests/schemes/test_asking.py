"""What is asked of a call over ranks beside its output; and that a plan sends nothing."""

import inspect
from typing import Any

import pytest
import torch

import regard
from regard.bench.measuring import Largest
from regard.core.call import Call
from regard.core.errors import ExecutorError
from regard.core.rule import Rule
from regard.core.score.biases import PlaceStep
from regard.core.value import types
from regard.run.plan import executor_for, make_plan
from regard.run.runner import run
from regard.schemes import SCHEMES, ShardedKeys, Striped, ZigZag, traffic
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers

N = 50
WANT = ("out", "lse", "weights", "entropy", "received", "top")
RULE = Rule(
    regard.Causal() & (regard.Window(9) | regard.Sinks(2)),
    weigh=regard.Softmax(sink=torch.tensor([0.5, -1.0, 0.0, 2.0])),
)


def drawn(seed: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    return torch.randn(2, 4, N, 8), torch.randn(2, 2, N, 8), torch.randn(2, 2, N, 6)


@pytest.mark.parametrize("scheme", ["ring", "gather", "heads"])
def test_weights_and_surveys_are_those_of_one_process(scheme: str) -> None:
    q, k, v = drawn(0)
    whole = run(Call.of(q, k, v, RULE), WANT)
    layout = ZigZag(N, 3)

    def asked(peers: Peers) -> Any:
        own = [layout.take(x, peers.rank, 2) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme=scheme)
        alone = run(Call(own[0], keys, RULE), ("entropy",)).survey
        return run(Call(own[0], keys, RULE), WANT), alone

    for rank, (result, alone) in enumerate(on_ranks(3, asked)):
        for got, one in (
            (result.out, whole.out), (result.lse, whole.lse), (result.weights, whole.weights),
            (result.survey.entropy, whole.survey.entropy), (alone.entropy, whole.survey.entropy),
        ):  # fmt: skip
            torch.testing.assert_close(got, layout.take(one, rank, 2), atol=2e-5, rtol=1e-5)


def test_a_plan_sends_nothing() -> None:
    q, k, v = drawn(1)
    layout = Striped(N, 2)

    def planned(peers: Peers) -> int:
        if peers.rank:  # a plan that waits for another rank would wait in vain
            return 0
        own = [layout.take(x, 0, 2) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout)
        with traffic() as sent:
            for weights in (False, True):
                make_plan(Call(own[0], keys, RULE), weights=weights)
                executor_for(Call(own[0], keys, RULE), lse=True, weights=weights)
            str(regard.plan(own[0], keys, rule=RULE))
        return sent.sent + sent.handshakes

    assert on_ranks(2, planned, timeout=5) == [0, 0]


def test_a_plan_names_who_sends_and_scores_how_much_and_what_cannot() -> None:
    q, k, v = drawn(2)
    layout = ZigZag(N, 2)

    def planned(peers: Peers) -> Any:
        own = [layout.take(x, peers.rank, 2) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout)
        return regard.plan(own[0], keys, rule=RULE)

    plans = on_ranks(2, planned)
    assert len({plan.executor for plan in plans}) == 1
    assert "2 ranks send" in str(plans[0])
    assert {*plans[0].considered, *plans[0].ruled_out} >= set(SCHEMES)
    assert "reads keys of one device" in plans[0].ruled_out["fused"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(score=regard.Dot() + regard.KeyWeights(torch.zeros(1, 1, N))), "an entry for each"),
        (Rule(score=regard.Dot() + regard.Cope(torch.zeros(1, 16, 8))), "whole rows"),
    ],
)
def test_what_a_rank_cannot_know_is_refused(rule: Rule, words: str) -> None:
    q, k, v = drawn(3)
    layout = ZigZag(N, 2)

    def asked(peers: Peers) -> Any:
        own = [layout.take(x, peers.rank, 2) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme="ring")
        return run(Call(own[0], keys, rule))

    with pytest.raises(ExecutorError, match=words):
        on_ranks(2, asked)


def test_heads_serve_scores_that_need_whole_rows() -> None:
    q, k, v = drawn(4)
    rule = Rule(regard.Causal(), regard.Dot() + regard.Cope(torch.randn(1, 16, 8)))
    layout = ZigZag(N, 3)

    def asked(peers: Peers) -> Any:
        own = [layout.take(x, peers.rank, 2) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout)
        return run(Call(own[0], keys, rule))

    whole = run(Call.of(q, k, v, rule)).out
    for rank, result in enumerate(on_ranks(3, asked)):
        assert result.executor == "heads"
        torch.testing.assert_close(result.out, layout.take(whole, rank, 2), atol=2e-5, rtol=1e-5)


def test_steps_that_read_an_entry_for_each_token_say_so() -> None:
    kinds = [
        kind for kind in types().values()
        if issubclass(kind, PlaceStep) and kind.__module__.startswith("regard.")
    ]  # fmt: skip
    assert len(kinds) > 8
    for kind in kinds:
        code = inspect.getsource(kind)
        assert kind.by_token == ("at.row" in code or "at.col" in code), kind


@pytest.mark.parametrize("scheme", ["ring", "burst"])
def test_what_a_rank_holds_falls_as_ranks_are_added(scheme: str) -> None:
    """Forward and backward at one length: the largest tensor of a rank, exponent 0.9 at least."""
    torch.manual_seed(5)
    q, k, d_out = torch.randn(1, 4, 512, 16), torch.randn(1, 2, 512, 16), torch.randn(1, 4, 512, 16)
    found = []
    for world in (1, 8):
        layout = ZigZag(512, world)

        def one(peers: Peers, layout: ZigZag = layout) -> int:
            own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, k)]
            keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme=scheme)
            with Largest() as seen:
                out = run(Call(own[0], keys, Rule(regard.Causal()))).out
                torch.autograd.grad(out, own, layout.take(d_out, peers.rank, 2))
            return seen.bytes

        found.append(max(on_ranks(world, one)))
    assert found[1] <= found[0] / 8**0.9, found
