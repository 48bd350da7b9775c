"""Every executor equals the reference: output, lse and every gradient, on generated calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Documents, Neighborhood, Sinks, Tiles, Window
from regard.run.plan import EXECUTORS
from tests.strategies import calls

EXACT = ["fused", "folded", "grouped", "chunked"]


def everything(executor: str, call: Call) -> list[torch.Tensor]:
    """Output, lse and the gradient of everything that is learned, as one executor gives them."""
    partial = EXECUTORS[executor].run(call)
    learned = [t for t in call.rule.tensors() if t.requires_grad]
    leaves = [call.q, call.k, call.v, *learned]
    generator = torch.Generator().manual_seed(1)
    pull = torch.randn(partial.out.shape, generator=generator, dtype=torch.float64)
    loss = (partial.out * pull).sum()
    found = [partial.out]
    if partial.lse is not None:
        found.append(partial.lse)
        pull = torch.randn(partial.lse.shape, generator=generator, dtype=torch.float64)
        loss = loss + (torch.where(partial.lse == -torch.inf, 0.0, partial.lse) * pull).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return found + [
        torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
    ]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        assert not x.isnan().any()
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("executor", EXACT)
@given(data=st.data())
def test_equals_the_reference(executor, data):
    softmax = executor == "fused"
    plain = softmax and data.draw(st.booleans())
    call = data.draw(calls(softmax=softmax, plain=plain, per_head=executor == "grouped"))
    assume(EXECUTORS[executor].can(call))  # hypothesis objects if this refuses most
    assert_same(everything(executor, call), everything("reference", call))


@pytest.mark.parametrize("executor", EXACT)
@given(data=st.data())
def test_rows_without_keys_are_zero_and_pull_on_nothing(executor, data):
    call = data.draw(calls(softmax=executor == "fused", plain=executor == "fused", most=40))
    nobody = regard.Where(_nobody)
    if executor == "grouped":
        nobody = regard.PerHead((nobody,) * call.h)
    call = call.replace(rule=call.rule.replace(support=nobody))
    assume(EXECUTORS[executor].can(call))
    out, *rest = everything(executor, call)
    assert (out == 0).all()
    if not call.rule.weigh.sums:
        assert (rest.pop(0) == -torch.inf).all()
    assert all((g == 0).all() for g in rest)


def _nobody(b, h, i, j):
    return (i < 0) & (j < 0)


STRUCTURES = {
    "plain": lambda n: None,
    "causal": lambda n: Causal(),
    "window": lambda n: Causal() & Window(37),
    "sinks": lambda n: Causal() & (Window(37) | Sinks(4)),
    "neighborhood": lambda n: Neighborhood((5, 5), (16, 16)),
    "documents": lambda n: Causal() & Documents((torch.arange(n) // 50).tolist()),
    "tiles": lambda n: Tiles(torch.rand(1, 4, n // 32, n // 32) < 0.3, 32),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_loses_no_more_than_pytorch_does(name, dtype, seed):
    """Within 1.5 of the error of SDPA with the same mask, both against float64."""
    n = 256
    rule = Rule.of(STRUCTURES[name](n))
    exact = [torch.randn(2, 4, n, 32, dtype=torch.float64).to(dtype).double() for _ in range(4)]
    mask = Call.of(*exact[:3], rule).allowed(Call.of(*exact[:3], rule).at()).expand(2, 4, n, n)

    def measure(attend, given):
        leaves = [x.requires_grad_() for x in given[:3]]
        out = attend(*leaves)
        return [out, *torch.autograd.grad(out, leaves, given[3])]

    want = measure(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), [x.clone() for x in exact]
    )
    low = [x.to(dtype) for x in exact]
    peer = measure(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), [x.clone() for x in low]
    )
    for executor in ("fused", "folded", "chunked", None):
        if executor is not None and not EXECUTORS[executor].can(Call.of(*low[:3], rule)):
            continue
        ours = measure(
            lambda q, k, v, e=executor: regard.attend(q, k, v, rule, executor=e),
            [x.clone() for x in low],
        )
        for x, y, z in zip(ours, peer, want, strict=True):
            error, allowed = (x.double() - z).norm(), (y.double() - z).norm()
            assert error <= 1.5 * allowed + 1e-6 * z.norm(), (executor, error, allowed)
