"""Extra keys beside those of a pattern run in the fused kernels, and equal the reference."""

import pytest
import torch

from regard import Causal
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import LowRankBias
from regard.core.support import Extended
from regard.core.support.base import Everything
from regard.run.fused import BESIDE_ENTRIES, Fused, beside
from regard.run.plan import make_plan
from regard.run.reference import Reference


def made(part, extra=16, n=512, bias=False):
    """A call of n queries over n + extra keys, long enough for two parts."""
    m = n + extra
    q = torch.randn(1, 4, n, 8, requires_grad=True)
    k, v = (torch.randn(1, 2, m, x, requires_grad=True) for x in (8, 6))
    rule = Rule(Extended(part, n))
    if bias:
        step = LowRankBias(torch.randn(1, 4, n, 1), torch.randn(1, 1, m, 1))
        rule = rule.replace(score=rule.score + step)
    return Call.of(q, k, v, rule)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("part", [Causal(), Everything()])
@pytest.mark.parametrize("extra", [1, 16, 512])  # a few before one's own keys, many apart
def test_extra_keys_beside_equal_the_reference(part, bias, extra):
    call = made(part, extra, bias=bias)
    assert beside(call)
    assert make_plan(call).executor == "fused"
    (out, lse), (other, its_lse) = Fused().run(call), Reference().run(call)
    torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, its_lse, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Fused().out(call), other, rtol=1e-4, atol=1e-5)
    seed = torch.randn_like(out)
    found = torch.autograd.grad((out * seed).sum() + lse.sum(), (call.q, call.k, call.v))
    known = torch.autograd.grad((other * seed).sum() + its_lse.sum(), (call.q, call.k, call.v))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_small_mask_is_written_out():
    assert beside(made(Causal(), n=64)) is None
    assert BESIDE_ENTRIES < 512 * 528


def test_extra_keys_that_weigh_nothing_change_nothing():
    call = made(Causal())
    marks = torch.zeros(1, 1, call.m, 1)
    marks[:, :, 512:] = -3000.0
    step = LowRankBias(torch.ones(1, 1, call.n, 1), marks)
    less = call.replace(rule=call.rule.replace(score=call.rule.score + step))
    own = Call.of(call.q, call.k[:, :, :512], call.v[:, :, :512], Rule(Causal()))
    torch.testing.assert_close(Fused().out(less), Fused().out(own), rtol=1e-4, atol=1e-6)
