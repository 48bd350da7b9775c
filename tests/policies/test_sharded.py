"""Heads that share out the blocks of a text, and queries that choose theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

import regard
from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.rule import Rule
from regard.core.support import Causal, PerHead
from regard.layers.block_routing import routed
from regard.models.site import Site, Sites
from regard.policies import Budget, policy
from regard.policies.base import Step
from regard.policies.sharded import shard
from tests.architectures import DECODERS, build

BLOCK, LOCAL, STRIDE, N, FIRST = 8, 2, 4, 203, 150
IDS = torch.randint(5, 60, (1, N), generator=torch.Generator().manual_seed(0))


def model() -> Any:
    torch.manual_seed(0)
    config = {**DECODERS["llama"], "num_attention_heads": 8, "num_key_value_heads": 4}
    return build("llama", config, causal=True)


def s2() -> Any:
    return policy("s2", block=BLOCK, local=LOCAL)


@given(stride=st.integers(1, 5), local=st.integers(1, 3), block=st.integers(1, 9))
def test_heads_enough_see_everything_together(stride: int, local: int, block: int) -> None:
    n = 60
    masks = torch.stack([shard(h, stride, local, block).matrix(n)[0, 0] for h in range(stride)])
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    assert bool((masks.any(0) == causal).all())
    i, j = torch.arange(n)[:, None] // block, torch.arange(n) // block
    for h, mask in enumerate(masks):
        assert torch.equal(mask, causal & ((i - j < local) | (j % stride == h) | (j == 0)))


def test_heads_with_the_same_blocks_do_not() -> None:
    """A far copy: every query looks for one key, which it knows by its place."""
    torch.manual_seed(0)
    places = torch.eye(N)
    wanted = (torch.rand(N) * torch.arange(1, N + 1)).long()

    def copied(offsets: list[int]) -> float:
        rule = Rule(PerHead([shard(o, STRIDE, LOCAL, BLOCK) for o in offsets]))
        q, k = 60 * N**0.5 * places[wanted].expand(1, 4, N, N), places.expand(1, 4, N, N)
        found = regard.attend(q, k, k, rule)[0].sum(0).argmax(-1)
        return float((found == wanted).float().mean())

    assert copied([0, 1, 2, 3]) == 1.0
    assert copied([1, 1, 1, 1]) < 0.7


@torch.no_grad()
def test_decoding_over_what_is_kept_is_the_masked_whole() -> None:
    made = model()
    with regard.shrink(made, s2(), keep=1 / STRIDE, check=False):
        whole = made(IDS).logits
    with regard.shrink(made, s2(), keep=1 / STRIDE, check=False) as shrunk:
        out = made(IDS[:, :FIRST])
        cache, found = out.past_key_values, [out.logits]
        for start, stop in ((FIRST, FIRST + 20), *((i, i + 1) for i in range(FIRST + 20, N))):
            found.append(made(IDS[:, start:stop], past_key_values=cache).logits)
        report = shrunk.report()
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=2e-5, rtol=2e-5)
    # The next query stands at N: its own block and the one before, its residue, and the first.
    last = N // BLOCK
    for layer in report.layers:
        for h, kept in enumerate(layer.kept):
            stays = [j for j in range(last + 1) if last - j < LOCAL or j % STRIDE == h or j == 0]
            assert kept == sum(min(BLOCK, N - j * BLOCK) for j in stays)
    # At least the pairs of the masks were computed, and no more than the whole model's.
    pairs = sum(int(shard(h, STRIDE, LOCAL, BLOCK).matrix(N).sum()) for h in range(4)) / 4
    flops = 2.0 * 8 * 2 * made.config.head_dim * pairs
    whole = 2.0 * 8 * 2 * made.config.head_dim * N * N
    assert all(flops * (1 - 1e-6) <= layer.flops <= whole for layer in report.layers)


@torch.no_grad()
def test_dense_layers_and_a_whole_budget_keep_everything() -> None:
    made = model()
    plain = made(IDS).logits
    every = tuple(range(made.config.num_hidden_layers))
    for dense, keep in ((every, 0.25), ((), 1.0)):
        one = policy("s2", block=BLOCK, dense=dense, keep=keep)
        with regard.shrink(made, one, check=False) as shrunk:
            torch.testing.assert_close(made(IDS).logits, plain, atol=2e-5, rtol=2e-5)
            assert all(kept == N for layer in shrunk.report().layers for kept in layer.kept)


@pytest.mark.parametrize(
    ("settings", "keep", "said"),
    [({"block": 0}, 0.5, "block"), ({"local": 0}, 0.5, "local"), ({}, 64, "keep")],
)
def test_wrong_settings_are_told(settings: dict[str, Any], keep: Any, said: str) -> None:
    made = model()
    with (
        pytest.raises(RegardError, match=said),
        regard.shrink(made, policy("s2", **settings), keep=keep, check=False),
    ):
        made(IDS)


@given(seed=st.integers(0, 100), keep=st.sampled_from([0.2, 0.5, 0.8]))
def test_queries_choose_as_the_layer_does(seed: int, keep: float) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(2, 4, 90, 16), torch.randn(2, 2, 90, 16), torch.randn(2, 2, 90, 16)
    site = Site(0, "self", "layer", 4, 2, 16, causal=True)
    call = Call.of(q, k, v, Rule(Causal()), site=site)
    one = policy("moba", block=16)
    one.begin(torch.nn.Linear(1, 1), Sites([site]), Budget.of(keep))
    step = Step(call, 90, torch.tensor([90, 90]))
    made = one.select(step)
    count = max(2, round(6 * (1 - (1 - keep) ** 0.5)))
    chosen = routed(call, 16, count)
    assert made.rule.support == Causal() & chosen
    mask = made.rule.support.matrix(90)
    dense = q @ k.repeat_interleave(2, 1).mT / 4
    weights = dense.masked_fill(~mask, -torch.inf).softmax(-1)
    wanted = weights @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(regard.attend(q, k, v, made.rule), wanted, atol=1e-5, rtol=1e-5)
