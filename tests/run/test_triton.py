"""The Triton kernels equal the reference, in the interpreter or on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.key_forms import Paged
from regard.core.keys import Dense
from regard.core.partial import Partial, merge
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Everything, PerHead, Sinks, Window
from regard.run.plan import EXECUTORS, densified
from regard.run.runner import run
from regard.run.triton.availability import why_not_here
from regard.run.triton.launch import Launch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    bool(why_not_here(DEVICE)), reason=f"kernels cannot run: {why_not_here(DEVICE)}"
)
FEW = settings(max_examples=25)


@pytest.fixture(autouse=True, scope="module")
def _memory_comes_full_of_nan():
    """What a kernel does not write would show."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(1, device=DEVICE).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


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
    call = Call.of(q, k, v, rule).checked()
    assert EXECUTORS["triton"].can(call)
    close(EXECUTORS["triton"].run(call), EXECUTORS["reference"].run(call), dtype)


def over_pages(q, k, v, table, lengths, window=None, sinks=0):
    """A call from the last positions of each row over its pages."""
    h, n = q.shape[1:3]
    windows = torch.as_tensor(1 << 20 if window is None else window).expand(h).tolist()
    support = PerHead(
        tuple(Causal() & (Window(w) | Sinks(sinks) if sinks else Window(w)) for w in windows)
    )
    keys = Paged(k, v, table[:, None], lengths[:, None])
    now = lengths[:, None] - n + torch.arange(n, device=q.device)
    return Call(q, keys, Rule(Causal() if window is None and not sinks else support), now)


@FEW
@given(shapes(), st.data())
def test_pages_equal_gathered_keys(shape, data):
    b, g, share, n, _ = shape
    h, page, pages = g * share, data.draw(st.sampled_from([16, 32, 256])), 4
    n = data.draw(st.sampled_from([n, 16]))
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
    call = over_pages(q, k, v, table, lengths, **given_).checked()
    assert EXECUTORS["paged"].can(call), EXECUTORS["paged"].can(call)
    got = EXECUTORS["paged"].split(call, data.draw(st.sampled_from([None, 1, 2, 3, 4])))
    close(got, EXECUTORS["reference"].run(densified(call)))


def test_queries_that_are_not_consecutive_are_left_to_others():
    """The plan of a call over pages knows whether its queries are in a row."""
    pages, table = torch.randn(4, 2, 16, 8, device=DEVICE), torch.arange(4, device=DEVICE)[None]
    lengths = torch.tensor([60], device=DEVICE)
    call = over_pages(torch.randn(1, 4, 3, 8, device=DEVICE), pages, pages, table, lengths)
    run(call, ("lse",), "paged")
    apart = call.replace(q_positions=torch.tensor([[3, 9, 50]], device=DEVICE))
    with pytest.raises(RegardError, match="not consecutive"):
        run(apart, ("lse",), "paged")
    close(run(apart, ("lse",))[:2], EXECUTORS["reference"].run(densified(apart)))


@FEW
@given(shapes(), st.data())
def test_chosen_keys_equal_gathered_keys(shape, data):
    b, g, share, n, m = shape
    q, k = torch.randn(b, g * share, n, 8), torch.randn(b, g, m, 8)
    count = data.draw(st.integers(1, m))
    index = torch.rand(b, g, m).argsort(-1)[..., :count]
    index = torch.where(torch.rand(index.shape) < 0.2, -1, index).to(DEVICE)
    q, k = q.to(DEVICE), k.to(DEVICE)
    rule = data.draw(st.sampled_from([Rule(Causal(), offset=m), Rule(Causal(), offset=m // 2)]))
    call = Call(q, Dense(k, k).take(index), rule)
    close(run(call, ("lse",), "selected")[:2], EXECUTORS["reference"].run(densified(call)))


def test_no_chosen_key_gives_zeros():
    q, k = torch.randn(2, 4, 3, 8, device=DEVICE), torch.randn(2, 2, 9, 8, device=DEVICE)
    index = torch.full((2, 2, 5), -1, device=DEVICE)
    got = run(Call(q, Dense(k, k).take(index), Rule(Causal(), offset=9)), ("lse",), "selected")
    assert torch.equal(got.out, torch.zeros_like(q))
    assert torch.equal(got.lse, torch.full_like(got.lse, -torch.inf))


def test_keys_that_no_window_reaches_are_not_read(seed):
    """A window costs what it holds: block by block, other keys may be anything."""
    m, window, sinks = 1000, torch.tensor([20, 7, 90, 1]), torch.tensor([0, 3, 1, 0])
    k, v = torch.randn(2, 1, 2, m, 8, device=DEVICE).unbind(0)
    q = torch.randn(1, 4, 2, 8, device=DEVICE)
    rule = PerHead(
        tuple(
            Causal() & (Window(int(w)) | Sinks(int(s))) if s else Causal() & Window(int(w))
            for w, s in zip(window, sinks, strict=True)
        )
    )
    want = regard.partial(q, k, v, Rule(rule, offset=m - 2), executor="reference")
    block = 64  # float32, small heads
    for x in (k, v):
        x[:, :, block : (m - 92) // block * block] = torch.nan
    call = Call.of(q, k, v, Rule(rule, offset=m - 2))
    close(EXECUTORS["triton"].run(call), want)


def test_windows_cost_less_and_plain_decoding_stays_with_the_fused_kernel():
    q, k = torch.empty(2, 4, 1, 64, device=DEVICE), torch.empty(2, 2, 4096, 64, device=DEVICE)
    triton, fused = EXECUTORS["triton"], EXECUTORS["fused"]
    plain = Call.of(q, k, k, Rule(Causal(), offset=4095))
    near = plain.replace(rule=Rule(Causal() & Window(64), offset=4095))
    assert triton.cost(near).weight < 0.1 * triton.cost(plain).weight
    assert fused.cost(plain).weight < triton.cost(plain).weight


@FEW
@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.booleans())
def test_splits_merge_as_partials_do(seed, splits, empty):
    from regard.run.triton.merging import merge_splits

    torch.manual_seed(seed)
    parts, lses = torch.randn(1, 2, splits, 3, 5), 30 * torch.randn(1, 2, splits, 3)
    gone = torch.rand(lses.shape) < (1.0 if empty else 0.3)
    parts, lses = parts.masked_fill(gone[..., None], 0.0), lses.masked_fill(gone, -torch.inf)
    got = merge_splits(parts.to(DEVICE), lses.to(DEVICE), torch.float32)
    apart = zip(parts.unbind(2), lses.unbind(2), strict=True)
    close(got, merge(*(Partial(*one) for one in apart)))


SUPPORTS = [Everything(), Causal(), Window(9, 4), Causal() & (Window(9) | Sinks(3))]
SCORES = [Dot(), Dot() >> SoftCap(2.0), Dot() + Alibi.for_heads(4) >> SoftCap(3.0)]


@FEW
@given(st.data())
def test_survey_equals_streamed_rows(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    n, m = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    g, dtype = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from(list(TOLERANCE)))
    q = torch.randn(2, 4, n, 8, device=DEVICE).to(dtype)
    k = torch.randn(2, g, m, 8, device=DEVICE).to(dtype)
    offset = data.draw(st.sampled_from([0, 7]))
    rule = Rule(
        data.draw(st.sampled_from(SUPPORTS)), data.draw(st.sampled_from(SCORES)), offset=offset
    )
    want = data.draw(
        st.sampled_from([("lse", "entropy"), ("entropy", "received"), ("lse", "received", "tiles")])
    )
    tile = data.draw(st.sampled_from([16, 32]))
    with pytest.MonkeyPatch.context() as patch:
        # Blocks so small that edges, middles and several tiles in a block all happen.
        patch.setattr("regard.run.triton.survey.ROWS", {64: Launch(16, 32, 4, 2)})
        patch.setattr("regard.run.triton.survey.COLUMNS", {64: Launch(32, 32, 4, 2)})
        got = regard.survey(q, k, None, rule, want, tile=tile, executor="triton")
    rows = regard.survey(q, k, None, rule, want, tile=tile, executor="streamed")
    assert got.found.keys() == rows.found.keys()
    close(got.found.values(), rows.found.values())


def test_survey_in_blocks_as_launched(seed):
    q, k = torch.randn(1, 2, 150, 8, device=DEVICE), torch.randn(1, 1, 290, 8, device=DEVICE)
    for support in (Causal(), Causal() & (Window(90) | Sinks(3))):
        rule = Rule(support, offset=140)
        want = ("lse", "entropy", "received", "tiles")
        got = regard.survey(q, k, None, rule, want, executor="triton")
        rows = regard.survey(q, k, None, rule, want, executor="streamed")
        close(got.found.values(), rows.found.values())


def test_entropy_survives_large_scores():
    """Scores in the hundreds leave no room for differences of large sums."""
    q = torch.ones(1, 1, 4, 8, device=DEVICE)
    k = torch.full((1, 1, 64, 8), 250.0, device=DEVICE)
    got = regard.survey(q, k, want=("entropy",), executor="triton")
    close([got.entropy], [torch.full((1, 1, 4), math.log(64.0), device=DEVICE)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, p, t, n: Paged(p, p[:, :, :8], t, n), "k"),
        (lambda q, p, t, n: Call(q, Paged(p, p, t[:1], n[:1])).checked(), "keys"),
        (lambda q, p, t, n: Paged(p, p, t, n.float()), "lengths"),
        (lambda q, p, t, n: Paged(p, p, t, n + 999), "lengths"),
        (lambda q, p, t, n: Paged(p, p, t[:, 0], n), "table"),
        (lambda q, p, t, n: run(Call(q, Paged(p, p, t, n)), executor="cuda"), "executor"),
        (lambda q, p, t, n: Call(q[:, :3], Paged(p, p, t, n)).checked(), "keys"),
    ],
)
def test_bad_input_is_named(call, words):
    q, pages = torch.randn(2, 4, 1, 8), torch.randn(8, 2, 16, 8)
    table, lengths = torch.arange(4).view(2, 1, 2), torch.tensor([[20], [32]])
    with pytest.raises(RegardError, match=f"`{words}`"):
        call(q, pages, table, lengths)
