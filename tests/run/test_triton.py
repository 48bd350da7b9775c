"""The Triton kernels equal the reference, in the interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Everything, PerHead, Sinks, Window
from regard.run.paged import paged_partial, selected_partial
from regard.run.plan import EXECUTORS
from regard.run.triton.here import why_not_here

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    bool(why_not_here(DEVICE)), reason=f"kernels cannot run: {why_not_here(DEVICE)}"
)
FEW = settings(max_examples=25)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def close(got, want, dtype=torch.float32):
    atol = TOLERANCE[dtype]
    for x, y in zip(got, want, strict=True):
        assert not x.isnan().any()
        torch.testing.assert_close(x.double(), y.double(), rtol=atol, atol=atol)


@st.composite
def shapes(draw):
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    g, share = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4, 8]))
    return draw(st.integers(1, 2)), g, share, draw(st.integers(1, 5)), draw(st.integers(1, 70))


def band(draw, h):
    one = st.sampled_from(
        [Causal(), Causal() & Window(7), Causal() & (Window(5) | Sinks(2)), Causal() & Window(64)]
    )
    if draw(st.booleans()):
        return PerHead(tuple(draw(one) for _ in range(h)))
    return draw(one)


@FEW
@given(shapes(), st.data())
def test_decode_equals_the_reference(shape, data):
    b, g, share, n, m = shape
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    h, d, e = g * share, data.draw(st.sampled_from([8, 20])), data.draw(st.sampled_from([8, 16]))
    q, k, v = (
        torch.randn(b, heads, length, size, device=DEVICE).to(dtype)
        for heads, length, size in ((h, n, d), (g, m, d), (g, m, e))
    )
    rule = Rule(band(data.draw, h), offset=data.draw(st.integers(0, m)))
    call = Call(q, k, v, rule).checked()
    assert EXECUTORS["triton"].can(call)
    close(EXECUTORS["triton"].run(call), EXECUTORS["reference"].run(call), dtype)


@FEW
@given(shapes(), st.data())
def test_pages_equal_gathered_keys(shape, data):
    b, g, share, n, _ = shape
    h, page, pages = g * share, 16, 4
    k, v = (torch.randn(b * pages + 3, g, page, 8, device=DEVICE) for _ in "kv")
    table = torch.randperm(b * pages)[: b * pages].view(b, pages).to(DEVICE)
    lengths = torch.randint(n, page * pages + 1, (b,)).to(DEVICE)
    free = torch.ones(len(k), page, dtype=torch.bool)  # slots that no row uses
    for row in range(b):
        used = int(lengths[row])
        for place in range(pages):
            free[int(table[row, place]), : max(0, min(page, used - place * page))] = False
    k[free[:, None].expand(-1, g, -1).to(DEVICE)] = torch.nan  # reading one would show
    v[free[:, None].expand(-1, g, -1).to(DEVICE)] = torch.nan
    given_ = {
        "window": data.draw(st.sampled_from([None, 9, torch.arange(1, h + 1)])),
        "sinks": data.draw(st.sampled_from([0, 2])),
    }
    q = torch.randn(b, h, n, 8, device=DEVICE)
    splits = data.draw(st.sampled_from([None, 1, 3]))
    got = paged_partial(q, k, v, table, lengths, executor="triton", splits=splits, **given_)
    clean = k.nan_to_num(), v.nan_to_num()
    close(got, paged_partial(q, *clean, table, lengths, executor="gathered", **given_))


@FEW
@given(shapes(), st.data())
def test_chosen_keys_equal_gathered_keys(shape, data):
    b, g, share, n, m = shape
    q, k = torch.randn(b, g * share, n, 8), torch.randn(b, g, m, 8)
    count = data.draw(st.integers(1, m))
    index = torch.rand(b, g, m).argsort(-1)[..., :count]
    index = torch.where(torch.rand(index.shape) < 0.2, -1, index).to(DEVICE)
    q, k = q.to(DEVICE), k.to(DEVICE)
    got = selected_partial(q, k, k, index, executor="triton", offset=m)
    close(got, selected_partial(q, k, k, index, executor="gathered", offset=m))


SUPPORTS = [Everything(), Causal(), Window(9, 4), Causal() & (Window(9) | Sinks(3))]
SCORES = [Dot(), Dot() >> SoftCap(2.0), Dot() + Alibi.for_heads(4) >> SoftCap(3.0)]


@FEW
@given(st.data())
def test_survey_equals_streamed_rows(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    n, m = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    g = data.draw(st.sampled_from([1, 2, 4]))
    q, k = torch.randn(2, 4, n, 8, device=DEVICE), torch.randn(2, g, m, 8, device=DEVICE)
    offset = data.draw(st.sampled_from([0, 7]))
    rule = Rule(
        data.draw(st.sampled_from(SUPPORTS)), data.draw(st.sampled_from(SCORES)), offset=offset
    )
    want = ("lse", "entropy", "received", "tiles")
    got = regard.survey(q, k, None, rule, want, tile=16, executor="triton")
    rows = regard.survey(q, k, None, rule, want, tile=16, executor="streamed")
    assert got.found.keys() == rows.found.keys()
    close(got.found.values(), rows.found.values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, p, t, n: paged_partial(q, p, p[:, :, :8], t, n), "k_pages"),
        (lambda q, p, t, n: paged_partial(q, p, p, t[:1], n), "table"),
        (lambda q, p, t, n: paged_partial(q, p, p, t, n.float()), "lengths"),
        (lambda q, p, t, n: paged_partial(q, p, p, t, n + 999), "lengths"),
        (lambda q, p, t, n: paged_partial(q, p, p, t, n, executor="cuda"), "executor"),
        (lambda q, p, t, n: paged_partial(q[:, :3], p, p, t, n), "k_pages"),
        (lambda q, p, t, n: selected_partial(q, p[:2], p[:2], t), "index"),
        (lambda q, p, t, n: selected_partial(q, p[:2], p[:2], t[:, None] + 99), "index"),
    ],
)
def test_bad_input_is_named(call, words):
    q, pages = torch.randn(2, 4, 1, 8), torch.randn(8, 2, 16, 8)
    table, lengths = torch.arange(4).view(2, 2), torch.tensor([20, 32])
    with pytest.raises(RegardError, match=f"`{words}`"):
        call(q, pages, table, lengths)
