"""Laws of scans: all forms mean the recurrence, however the sequence is cut, packed or padded."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.scan import (
    ScanState,
    chunked,
    initial_memory,
    initial_pair,
    momentum_chunked,
    momentum_recurrent,
    parallel,
    prepare,
    recurrent,
    starts,
    unordered,
)
from regard.core.scan.state import MomentumState
from regard.run.scanning import scan, scan_momentum

FEWER = settings(max_examples=max(10, settings().max_examples // 4))
RATES = ("none", "number", "head", "head channel", "token", "token channel")


class Case:
    """Random float64 inputs of one scan, from one printed seed."""

    def __init__(
        self, seed, b=1, g=1, groups=1, n=9, d=3, e=2, rate="none", delta=False, masks=False
    ):
        make = torch.Generator().manual_seed(seed)
        h = g * groups

        def normal(*shape):
            return torch.randn(*shape, generator=make, dtype=torch.float64).requires_grad_()

        def uniform(*shape):
            return torch.rand(*shape, generator=make, dtype=torch.float64)

        self.q, self.k, self.v = normal(b, h, n, d), normal(b, g, n, d), normal(b, g, n, e)
        shape = {
            "head": (h,),
            "head channel": (h, d),
            "token": (b, h, n),
            "token channel": (b, h, n, d),
        }
        self.log_decay = {"none": None, "number": -0.3}.get(rate)
        if rate in shape:
            self.log_decay = (-2 * uniform(*shape[rate])).requires_grad_()
        self.log_momentum = (-2 * uniform(b, h, n)).requires_grad_()
        self.beta = (0.3 * uniform(b, h, n)).requires_grad_() if delta else None
        self.keep = uniform(b, n) < 0.8 if masks else None
        self.reset = uniform(b, n) < 0.1 if masks else None
        self.memory, self.momentum = normal(b, h, d, e), normal(b, h, d, e)
        self.toward = normal(b, h, n, e).detach(), normal(b, h, d, e).detach()

    @property
    def arguments(self):
        return {name: getattr(self, name) for name in ("log_decay", "beta", "keep", "reset")}

    def results(self, form, momentum=False):
        """Run a form: out, last state, and the gradient of each differentiable input."""
        leaves = [self.q, self.k, self.v, self.memory, self.log_decay, self.beta]
        if momentum:
            tokens = prepare(
                self.q, self.k, self.v, log_momentum=self.log_momentum, **self.arguments
            )
            pair = initial_pair(MomentumState(self.memory, self.momentum), tokens)
            out, last = form(tokens, pair)
            leaves += [self.log_momentum, self.momentum]
        else:
            tokens = prepare(self.q, self.k, self.v, **self.arguments)
            out, memory = form(tokens, initial_memory(ScanState(self.memory), tokens))
            last = (memory,)
        leaves = [x for x in leaves if isinstance(x, torch.Tensor)]
        toward = (self.toward[0], *(self.toward[1] * (i + 1) for i in range(len(last))))
        return [out, *last, *torch.autograd.grad((out, *last), leaves, toward)]


def some_cases(rates=RATES):
    return st.builds(
        Case,
        seed=st.integers(0, 2**31),
        b=st.integers(1, 2),
        g=st.integers(1, 2),
        groups=st.integers(1, 2),
        n=st.sampled_from([1, 2, 3, 7, 8, 9, 16, 21, 33, 70]),
        d=st.integers(1, 5),
        e=st.integers(1, 4),
        rate=st.sampled_from(rates),
        delta=st.booleans(),
        masks=st.booleans(),
    )


cases = some_cases()
chunks = st.sampled_from([1, 3, 8, 16, 64])


def assert_equal(got, want, tolerance=1e-10):
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(
            x, y, rtol=tolerance, atol=tolerance * (1 + y.abs().max().item())
        )


@given(cases, chunks)
def test_chunked_is_the_recurrence_with_all_gradients(case, chunk):
    got = case.results(lambda tokens, memory: chunked(tokens, memory, chunk))
    assert_equal(got, case.results(recurrent))


@FEWER
@given(cases)
def test_parallel_is_the_recurrence_with_all_gradients(case):
    assert_equal(case.results(parallel), case.results(recurrent))


@FEWER
@given(some_cases(["none", "number", "head", "token"]), chunks)
def test_momentum_chunked_is_the_recurrence_with_all_gradients(case, chunk):
    got = case.results(lambda tokens, pair: momentum_chunked(tokens, pair, chunk), momentum=True)
    assert_equal(got, case.results(momentum_recurrent, momentum=True))


@FEWER
@given(cases, chunks, st.integers(0, 70), st.integers(0, 70))
def test_segments_carried_by_the_state_equal_the_whole(case, chunk, first, second):
    n = case.q.shape[2]
    cuts = sorted({0, min(first, n), min(second, n), n})
    state, outs = ScanState(case.memory), []
    for start, stop in itertools.pairwise(cuts):
        part = slice(start, stop)
        arguments = {
            name: x[:, :, part] if name in ("log_decay", "beta") else x[:, part]
            for name, x in case.arguments.items()
            if isinstance(x, torch.Tensor) and x.ndim != 1
            if not (name == "log_decay" and x.ndim == 2)
        }
        arguments = {**case.arguments, **arguments}
        q, k, v = (x[:, :, part] for x in (case.q, case.k, case.v))
        out, state = scan(q, k, v, state=state, chunk=chunk, **arguments)
        outs.append(out)
    out, last = scan(
        case.q, case.k, case.v, state=ScanState(case.memory), form="recurrent", **case.arguments
    )
    assert_equal([torch.cat(outs, dim=2), state.memory], [out, last.memory])


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_decoding_token_by_token_equals_the_whole(seed, rate, delta):
    case = Case(seed, b=2, g=2, groups=2, n=19, rate=rate, delta=delta)
    n = case.q.shape[2]
    whole, last = scan(case.q, case.k, case.v, chunk=8, **case.arguments)
    state, outs = None, []
    for t in range(n):
        now = slice(t, t + 1)
        arguments = dict(case.arguments)
        if delta:
            arguments["beta"] = case.beta[:, :, now]
        if rate.startswith("token"):
            arguments["log_decay"] = case.log_decay[:, :, now]
        q, k, v = (x[:, :, now] for x in (case.q, case.k, case.v))
        out, state = scan(q, k, v, state=state, **arguments)
        outs.append(out)
    assert_equal([torch.cat(outs, dim=2), state.memory], [whole, last.memory])


@pytest.mark.parametrize("form", ["parallel", "chunked"])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_the_future_changes_nothing_before_it(seed, rate, delta, form):
    case = Case(seed, n=21, rate=rate, delta=delta)
    arguments = case.arguments
    out, _ = scan(case.q, case.k, case.v, form=form, chunk=8, **arguments)
    late = [x.detach().clone() for x in (case.q, case.k, case.v)]
    for x in late:
        x[:, :, 13:] = 7.0
    again, _ = scan(*late, form=form, chunk=8, **arguments)
    assert_equal([again[:, :, :13]], [out[:, :, :13]])
    assert (again[:, :, 13:] != out[:, :, 13:]).any()


@FEWER
@given(cases, chunks)
def test_packed_documents_equal_documents_apart(case, chunk):
    b, _, n, _ = case.q.shape
    ids = torch.tensor([0] * (n - n // 2) + [5] * (n // 2)).expand(b, n)
    cut = n - n // 2
    if cut == n:
        return
    arguments = {"log_decay": case.log_decay, "beta": case.beta}
    packed, last = scan(case.q, case.k, case.v, reset=starts(ids), chunk=chunk, **arguments)
    for part in (slice(0, cut), slice(cut, n)):
        own = {
            name: x[:, :, part] if isinstance(x, torch.Tensor) and x.ndim > 2 else x
            for name, x in arguments.items()
        }
        q, k, v = (x[:, :, part] for x in (case.q, case.k, case.v))
        out, state = scan(q, k, v, chunk=chunk, **own)
        assert_equal([packed[:, :, part]], [out])
    assert_equal([last.memory], [state.memory])
    leak = torch.autograd.grad(packed[:, :, cut:].sum(), case.v)[0][:, :, :cut]
    assert not leak.any()


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_left_padding_changes_nothing(seed, rate, delta):
    case = Case(seed, b=1, n=17, rate=rate, delta=delta)
    pad = 6
    keep = torch.arange(17)[None] >= pad
    start = ScanState(case.memory)
    out, last = scan(
        case.q, case.k, case.v, keep=keep, state=start, chunk=8,
        log_decay=case.log_decay, beta=case.beta,
    )  # fmt: skip
    own = {
        name: x[:, :, pad:] if isinstance(x, torch.Tensor) and x.ndim > 2 else x
        for name, x in (("log_decay", case.log_decay), ("beta", case.beta))
    }
    q, k, v = (x[:, :, pad:] for x in (case.q, case.k, case.v))
    want, state = scan(q, k, v, state=start, chunk=8, **own)
    assert_equal([out[:, :, pad:], last.memory], [want, state.memory])


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", ["token", "token channel"])
def test_strong_decay_neither_overflows_nor_loses_precision(seed, rate, delta):
    b, h, n, d = 1, 2, 2048, 8
    shape = (b, h, n) if rate == "token" else (b, h, n, d)
    # From no decay to one that underflows at once, mixed, and some that forget everything.
    decay = -(10 ** torch.empty(shape).uniform_(-4, 3)).masked_fill(
        torch.rand(shape) < 0.05, math.inf
    )
    q, k, v = torch.randn(3, b, h, n, d)
    k = k / k.norm(dim=-1, keepdim=True)
    beta = torch.rand(b, h, n) if delta else None
    leaves = [x.requires_grad_() for x in (q, k, v, decay)]
    out, state = scan(q, k, v, log_decay=decay, beta=beta)
    gradients = torch.autograd.grad(out.square().sum() + state.memory.sum(), leaves)
    assert all(x.isfinite().all() for x in (out, state.memory, *gradients))
    exact = {"log_decay": decay.double(), "beta": None if beta is None else beta.double()}
    want, _ = scan(q.double(), k.double(), v.double(), form="recurrent", **exact)
    loop, _ = scan(q, k, v, log_decay=decay, beta=beta, form="recurrent")
    # Derived: what the plain loop loses in float32, twice, and some ulps of the largest value.
    allowed = 2 * (loop - want).abs().max() + 8 * torch.finfo(torch.float32).eps * want.abs().max()
    assert (out - want).abs().max() <= allowed


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("most", [0.1, 30.0, 39.9, 40.1, 300.0])
def test_chunks_near_the_limit_of_mild_decay_keep_their_precision(seed, most, delta):
    """Some channels decay by `most` in a chunk, others do not at all; with padding."""
    make = torch.Generator().manual_seed(seed)
    shape, beta = (1, 2, 150, 16), torch.rand(1, 2, 150, generator=make) if delta else None
    given = [torch.randn(*shape, generator=make) for _ in range(3)]
    given[1] = torch.nn.functional.normalize(given[1], dim=-1)
    rate = torch.rand(*shape, generator=make)
    rate = (
        rate * -most / rate[:, :, :64].sum(2, keepdim=True) * torch.rand(16, generator=make).round()
    )
    keep = (torch.arange(150) >= 3)[None]

    def scanned(dtype, form):
        leaves = [x.to(dtype).requires_grad_() for x in (*given, rate)]
        q, k, v, decay = leaves
        b = None if beta is None else beta.to(dtype)
        out = scan(q, k, v, log_decay=decay, beta=b, keep=keep, form=form)[0]
        return out, *torch.autograd.grad(out.cos().sum(), leaves)

    want = scanned(torch.float64, "recurrent")
    for got, loop, exact in zip(
        scanned(torch.float32, "chunked"), scanned(torch.float32, "recurrent"), want, strict=True
    ):
        # Derived: what the plain loop loses in float32, twice, and some ulps of the largest value.
        eps = 8 * torch.finfo(torch.float32).eps
        allowed = 2 * (loop - exact).abs().max() + eps * exact.abs().max()
        assert (got - exact).abs().max() <= allowed


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_accumulated_in_float32(seed, dtype, rate, delta):
    case = Case(seed, n=130, d=4, e=4, rate=rate, delta=delta)
    q, k, v = (
        x.detach().to(dtype) for x in (case.q, case.k / case.k.norm(dim=-1, keepdim=True), case.v)
    )
    arguments = {"log_decay": case.log_decay, "beta": case.beta}
    out, state = scan(q, k, v, **arguments)
    want, _ = scan(q.double(), k.double(), v.double(), form="recurrent", **arguments)
    assert out.dtype == dtype
    assert state.memory.dtype == torch.float32
    allowed = torch.finfo(dtype).eps * want.abs() + 2e-5 * want.abs().max()
    assert ((out.double() - want).abs() <= allowed).all()


def test_autocast_does_not_lower_the_accumulation(seed):
    q, k, v = torch.randn(3, 1, 2, 100, 8)
    want, _ = scan(q, k, v, log_decay=-0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = scan(q, k, v, log_decay=-0.1)
        both = unordered(q, k, v)
    assert torch.equal(got, want)
    assert torch.equal(both, unordered(q, k, v))


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_normalized_output_is_the_average_by_the_weights(seed, form):
    q, k = torch.rand(2, 1, 2, 23, 4, dtype=torch.float64)
    v = torch.randn(1, 2, 23, 3, dtype=torch.float64)
    decay = torch.tensor([-0.1, -0.5], dtype=torch.float64)
    out, _ = scan(q, k, v, log_decay=decay, normalize=1e-9, form=form, chunk=8)
    distance = (torch.arange(23)[:, None] - torch.arange(23)).clamp(min=0)
    weights = ((q @ k.mT) * (decay[:, None, None] * distance).exp()).tril()
    assert_equal([out], [weights / weights.sum(-1, keepdim=True) @ v])


def test_rows_without_any_weight_give_zeros_and_no_nan(seed):
    q, k, v = (torch.rand(1, 1, 6, 3).requires_grad_() for _ in range(3))
    keep = torch.tensor([[False, False, True, True, True, True]])
    out, _ = scan(q, k, v, keep=keep, normalize=1e-6)
    assert not out[:, :, :2].any()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()
    assert not torch.autograd.grad(scan(q, k, v, keep=keep)[0].sum(), v)[0][:, :, :2].any()


def test_a_delta_rule_returns_what_was_last_stored_for_a_key(seed):
    k = torch.nn.functional.normalize(torch.randn(1, 1, 40, 8, dtype=torch.float64), dim=-1)
    v = torch.randn(1, 1, 40, 5, dtype=torch.float64)
    out, _ = scan(k, k, v, beta=1.0, chunk=16)
    assert_equal([out], [v])
    plain, _ = scan(k, k, v)
    assert (plain - v).abs().max() > 0.1


def test_momentum_that_ends_at_once_is_the_plain_scan_and_the_delta_rule(seed):
    case = Case(seed, n=21, delta=True)
    for beta in (None, case.beta):
        got, state = scan_momentum(
            case.q, case.k, case.v, log_momentum=-math.inf, beta=beta, chunk=8
        )
        want, last = scan(case.q, case.k, case.v, beta=beta)
        assert_equal([got, state.memory], [want, last.memory])


def test_without_order_every_query_reads_the_last_memory(seed):
    case = Case(seed, b=2, g=2, groups=2, n=11, masks=True)
    _, last = scan(case.q, case.k, case.v, keep=case.keep)
    assert_equal([unordered(case.q, case.k, case.v, keep=case.keep)], [case.q @ last.memory])
    ones = torch.ones_like(case.v)
    even = unordered(case.q.exp(), case.k.exp(), ones, normalize=1e-9)
    assert_equal([even], [torch.ones_like(even)])


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_gradients_are_those_of_finite_differences(seed, rate, delta):
    case = Case(seed, n=5, d=2, e=2, rate=rate, delta=delta)
    leaves = {name: getattr(case, name) for name in ("log_decay", "beta")}
    rates = {name: x for name, x in leaves.items() if isinstance(x, torch.Tensor)}

    def run(q, k, v, memory, *values):
        arguments = {**leaves, **dict(zip(rates, values, strict=True))}
        out, state = scan(q, k, v, state=ScanState(memory), chunk=4, **arguments)
        return out, state.memory

    inputs = (case.q, case.k, case.v, case.memory, *rates.values())
    # Strengths and decays stay inside their range under the small differences.
    assert torch.autograd.gradcheck(run, inputs, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(run, inputs, eps=1e-7, atol=1e-4)


def test_grouped_heads_are_heads_repeated(seed):
    case = Case(seed, g=2, groups=3, n=12, rate="head", delta=True)
    out, state = scan(case.q, case.k, case.v, log_decay=case.log_decay[:2], beta=case.beta[:, :2])
    k, v = (x.repeat_interleave(3, dim=1) for x in (case.k, case.v))
    decay, beta = case.log_decay[:2].repeat_interleave(3), case.beta[:, :2].repeat_interleave(3, 1)
    want, last = scan(case.q, k, v, log_decay=decay, beta=beta)
    assert torch.equal(out, want)
    assert torch.equal(state.memory, last.memory)
