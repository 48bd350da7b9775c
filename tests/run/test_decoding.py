"""Laws of single queries: their weights, the keys they read, and the largest of many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.call import Call
from regard.core.heads import take_keys
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Causal
from regard.core.top import LONG, top_slots
from regard.core.weigh import Softmax
from regard.run.reference import Reference, weight_matrix
from regard.run.runner import run
from regard.run.triton.availability import why_not_here

EXACT = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {
    "b": st.integers(1, 3), "g": st.integers(1, 3), "share": st.sampled_from((1, 2, 4)),
    "m": st.integers(1, 400), "d": st.sampled_from((8, 24)), "e": st.sampled_from((8, 16)),
    "seed": st.integers(0, 99),
}  # fmt: skip


def drawn(b: int, g: int, share: int, m: int, d: int, e: int, seed: int) -> Call:
    """A single query a row, over keys that lie in a larger room, as memories hold them."""
    torch.manual_seed(seed)
    k, v = torch.randn(b, g, m + 9, d)[:, :, :m], torch.randn(b, g, m + 9, e)[:, :, :m]
    return Call.of(torch.randn(b, g * share, 1, d), k, v, Rule(score=Dot(0.3)))


@given(**SIZES)
def test_weights_and_output_are_those_of_the_reference(**sizes: int) -> None:
    call = drawn(**sizes)
    found = run(call, ("weights", "lse"))
    assert found.executor == "decode"
    wanted = Reference().run(call)
    torch.testing.assert_close(found.out, wanted.out, **EXACT)
    torch.testing.assert_close(found.lse, wanted.lse, **EXACT)
    torch.testing.assert_close(found.weights, weight_matrix(call)[0], **EXACT)


@given(**SIZES, count=st.integers(1, 300), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
def test_slots_are_read_as_if_they_were_all(count: int, dtype: torch.dtype, **sizes: int) -> None:
    call = drawn(**sizes)
    b, g, m = call.b, call.g, call.m
    slots = torch.rand(b, g, m).argsort(-1)[..., :count]
    taken = call.replace(k=take_keys(call.k, slots), v=take_keys(call.v, slots))
    index = slots[..., None]
    assert torch.equal(taken.k, call.k.gather(2, index.expand(-1, -1, -1, call.d)))
    low = call.replace(q=call.q.to(dtype), k=call.k.to(dtype), v=call.v.to(dtype))
    exact = EXACT if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    wanted = Reference().run(taken)
    for want in (("out",), ("lse",)):
        found = run(low.replace(keys=low.keys.take(slots)), want)
        assert (found.executor == "decode") == (dtype == torch.float32)
        torch.testing.assert_close(found.out.float(), wanted.out, **exact)
    torch.testing.assert_close(found.lse, wanted.lse, **exact)


@settings(max_examples=25)
@given(**SIZES, count=st.integers(1, 300))
def test_the_kernel_reads_slots_where_they_are(count: int, **sizes: int) -> None:
    call = drawn(**sizes)
    if why_not_here(call.q.device):
        pytest.skip(why_not_here(call.q.device))
    slots = torch.rand(call.b, call.g, call.m).argsort(-1)[..., :count]
    some = call.replace(keys=call.keys.take(slots))
    found = run(some, executor="selected").out
    torch.testing.assert_close(found, run(some).out, **EXACT)


def test_gradients_pass_through_slots() -> None:
    call = drawn(1, 2, 2, 30, 8, 8, 0)
    k = call.k.contiguous().requires_grad_()
    slots = torch.tensor([[[3, 4], [9, 1]]])
    run(call.replace(keys=Dense(k, call.v).take(slots))).out.sum().backward()
    assert k.grad is not None
    met = k.grad.abs().sum(-1).nonzero().tolist()
    assert met == [[0, 0, 3], [0, 0, 4], [0, 1, 1], [0, 1, 9]]


def test_rules_that_look_at_positions_are_left_to_other_executors() -> None:
    call = drawn(1, 2, 2, 30, 8, 8, 0)
    found = run(call.replace(rule=Rule(Causal(), offset=12)), ("weights",))
    assert found.executor != "decode"
    assert float(found.weights[..., 13:].abs().max()) == 0.0


def test_a_sink_takes_its_share_of_output_and_weights() -> None:
    call = drawn(1, 2, 2, 30, 8, 8, 0).replace(rule=Rule(weigh=Softmax(plus_one=True)))
    found, wanted = run(call, ("weights", "lse")), run(call, ("weights", "lse"), "reference")
    assert found.executor == "decode"
    for x, y in zip(found[:3], wanted[:3], strict=True):
        torch.testing.assert_close(x, y, **EXACT)
    assert float(found.weights.sum(-1).max()) < 1


@given(
    rows=st.integers(1, 3), m=st.integers(1, 3 * LONG), share=st.floats(0.0, 1.0),
    kind=st.sampled_from(("normal", "few values", "sorted", "one spike", "infinite")),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_largest_are_the_largest(rows: int, m: int, share: float, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, m)
    if kind == "few values":
        x = x.round()
    elif kind == "sorted":
        x = x.sort(-1).values
    elif kind == "one spike":
        x = torch.zeros_like(x)
        x[:, m // 2] = 1.0
    elif kind == "infinite":
        x[x > 1] = torch.inf
        x[x < -1] = -torch.inf
    count = max(1, int(share * m))
    found = top_slots(x, count)
    assert found.shape == (rows, count)
    assert all(len(row.unique()) == count for row in found)
    # Among equals any may be taken, so the values are compared.
    best = x.topk(count, dim=-1).values
    assert torch.equal(x.gather(1, found).sort(-1, descending=True).values, best)


def test_rows_without_numbers_are_left_to_pytorch() -> None:
    x = torch.full((1, LONG), torch.nan)
    assert top_slots(x, 10).shape == (1, 10)
