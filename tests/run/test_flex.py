"""Compiled FlexAttention equals the reference, and one kernel serves rules of one signature."""

import pytest
import torch

from regard.core.call import Call
from regard.core.errors import ExecutorError
from regard.core.rule import Rule
from regard.core.score import (
    Additive,
    Alibi,
    Cope,
    Dot,
    General,
    KeyWeights,
    LowRankBias,
    RelativeBias,
    ScoreStep,
    ShawBias,
    SoftCap,
)
from regard.core.support import Causal, Padding, PerHead, Sinks, Tiles, Where, Window
from regard.core.tilemap import FULL, PARTIAL
from regard.core.weigh import Sigmoid, Softmax
from regard.run import flex
from regard.run.flex import Flex
from regard.run.reference import Reference

compiles = pytest.mark.skipif(
    bool(flex.no_compiler("cpu")), reason=f"cannot compile: {flex.no_compiler('cpu')}"
)
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device")])]  # fmt: skip


def call_of(rule, b=2, h=4, g=2, n=300, m=300, d=16, e=16, device="cpu", dtype=torch.float32):
    q, k, v = (torch.randn(b, x, y, z) for x, y, z in ((h, n, d), (g, m, d), (g, m, e)))
    return Call.of(*(x.to(device, dtype) for x in (q, k, v)), rule).checked()


def equals_reference(call, lse=False, tolerance=2e-5):
    assert Flex().can(call), Flex().can(call).reason
    exact = call.replace(q=call.q.double(), k=call.k.double(), v=call.v.double())
    wanted = Reference().run(exact)
    found = Flex().run(call) if lse else Flex().out(call)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(found.out if lse else found, wanted.out, **close)
    if lse:
        torch.testing.assert_close(found.lse, wanted.lse, **close)


@compiles
@pytest.mark.parametrize("device", DEVICES)
def test_one_kernel_serves_every_length_and_offset(seed, device):
    print("seed", seed)
    flex._kernels.clear()
    rule = Rule(Causal() & (Window(70) | Sinks(3)))
    for n, m in ((300, 300), (129, 333), (1, 1)):
        equals_reference(call_of(rule, n=n, m=m, device=device), lse=True)
    assert len(flex._kernels) == (1 if device == "cpu" else 2)
    for offset in (90, 200):
        equals_reference(call_of(rule.shift(offset), n=7, m=offset + 7, device=device))


@compiles
@pytest.mark.parametrize("device", DEVICES)
def test_tensors_are_inputs_of_the_kernel_and_not_part_of_it(seed, device):
    print("seed", seed)
    flex._kernels.clear()
    for _ in range(2):
        real = torch.rand(2, 300) < 0.6
        score = Dot() + Alibi(torch.rand(4)) >> SoftCap(5)
        equals_reference(call_of(Rule(Causal() & Padding(real), score), device=device))
    assert len(flex._kernels) == 1


@compiles
def test_rows_without_keys_are_zero(seed):
    print("seed", seed)
    rule = Rule(Tiles(torch.tensor([[False, False], [True, True]])[None, None], 150))
    out, lse = Flex().run(call_of(rule))
    assert not out[:, :, :150].any()
    assert bool((lse[:, :, :150] == -torch.inf).all())
    equals_reference(call_of(rule), lse=True)


@compiles
@pytest.mark.parametrize("device", DEVICES)
def test_heads_of_their_own_and_scores_from_the_query(seed, device):
    print("seed", seed)
    support = PerHead([Causal(), Window(5), Causal(), Sinks(2)])
    score = Dot() + ShawBias(torch.randn(4, 21, 16)) + RelativeBias(torch.randn(1, 9))
    equals_reference(call_of(Rule(support, score, Softmax(plus_one=True)), device=device))


@compiles
@pytest.mark.parametrize("device", DEVICES)
def test_what_rides_in_channels_rides(seed, device):
    print("seed", seed)
    removed = torch.rand(2, 1, 300) < 0.2
    score = (
        General(torch.randn(2, 12, 12), 0.1)
        + LowRankBias(torch.randn(1, 1, 300, 3), torch.randn(1, 2, 300, 3))
        + KeyWeights(torch.randn(2, 1, 300).masked_fill(removed, -torch.inf))
    )
    equals_reference(call_of(Rule(Causal(), score), h=2, d=12, e=9, device=device))


def test_a_function_that_branches_is_told_so(seed):
    def branches(b, h, i, j):
        return (j <= i) if i > 3 else (j == i)

    with pytest.raises(ExecutorError, match=r"does not trace.*torch\.where"):
        Flex().out(call_of(Rule(Where(branches))))


def test_full_and_partial_blocks_are_kept_apart(seed):
    rule = Rule(Causal() & Window(300))
    tiles = rule.tiles(700, 640, 128)
    made = flex.block_mask(tiles, rule.support.allows)
    listed = torch.zeros_like(tiles.state)
    for kind, count, index in (
        (PARTIAL, made.kv_num_blocks, made.kv_indices),
        (FULL, made.full_kv_num_blocks, made.full_kv_indices),
    ):
        for t in range(count.shape[2]):
            listed[0, 0, t, index[0, 0, t, : count[0, 0, t]].long()] = kind
    hanging = tiles.state.clone()
    hanging[:, :, -1] = hanging[:, :, -1].clamp(max=PARTIAL)  # 700 is no multiple of 128
    assert torch.equal(listed, hanging)
    assert bool((tiles.state[:, :, -1] == FULL).any()), "the test needs a full block at the end"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (call_of(Rule(weigh=Sigmoid())), "softmax"),
        (call_of(Rule(score=Dot() + Cope(torch.zeros(1, 4, 16)))), "whole rows"),
        (call_of(Rule(score=Additive(*torch.ones(2, 1, 16, 3), torch.ones(1, 3)))), "no product"),
        (call_of(Rule(), dtype=torch.float64), "float64"),
        (call_of(Rule(), n=0), "nothing to attend to"),
        (call_of(Rule()).replace(dropout=0.5), "dropout"),
        (call_of(Rule(Causal())).replace(q_positions=torch.arange(300)), "positions"),
        (call_of(Rule(score=Dot() + Alibi(torch.ones(4, requires_grad=True)))), "no backward"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_it_says_why_not(call, said):
    assert said in Flex().can(call).reason


def test_learned_tensors_out_of_sight_are_refused():
    weight = torch.ones(1, requires_grad=True)
    call = call_of(Rule(score=Dot() >> ScoreStep(lambda s, b, h, i, j: s * weight)))
    assert "being learned" in Flex().can(call).reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gradients_on_a_gpu(seed):
    print("seed", seed)
    table = torch.randn(4, 9, device="cuda", requires_grad=True)
    call = call_of(Rule(Causal(), Dot() + RelativeBias(table)), device="cuda")
    leaves = [x.requires_grad_() for x in (call.q, call.k, call.v)] + [table]
    found, wanted = (
        torch.autograd.grad(sum(x.sum() for x in executor.run(call)), leaves)
        for executor in (Flex(), Reference())
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-2)
