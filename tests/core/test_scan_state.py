"""States of scans: a monoid, and plain tensors to carry and save."""

import io

import pytest
import torch

from regard.core.errors import RegardError
from regard.core.scan import MomentumState, ScanState, starts, transition
from regard.run.scanning import scan, scan_momentum

DECAYS = ("none", "head", "head channel", "token", "token channel")


def segments(rate, delta, count=3, b=2, h=2, n=13, d=4, e=3):
    """Scan some segments apart, each from nothing; also give their inputs joined."""
    k = torch.randn(count, b, h, n, d, dtype=torch.float64) / d**0.5
    v = torch.randn(count, b, h, n, e, dtype=torch.float64)
    beta = torch.rand(count, b, h, n, dtype=torch.float64) if delta else None
    shapes = {"token": (count, b, h, n), "token channel": (count, b, h, n, d)}
    fixed = {"head": (h,), "head channel": (h, d)}
    decay = None
    if rate in shapes:
        decay = -torch.rand(shapes[rate], dtype=torch.float64)
    elif rate in fixed:
        decay = -torch.rand(fixed[rate], dtype=torch.float64)
    states = []
    for i in range(count):
        own = {"log_decay": decay[i] if rate in shapes else decay}
        if delta:
            own["beta"] = beta[i]
        _, state = scan(k[i], k[i], v[i], chunk=4, **own)
        if delta:
            state = ScanState(state.memory, transition=transition(k[i], chunk=4, **own))
        states.append(state)
    join = {"log_decay": torch.cat(list(decay), 2) if rate in shapes else decay}
    if delta:
        join["beta"] = torch.cat(list(beta), 2)
    _, whole = scan(torch.cat(list(k), 2), torch.cat(list(k), 2), torch.cat(list(v), 2), **join)
    return states, whole


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("rate", DECAYS)
def test_composition_is_associative_and_gives_the_whole(seed, rate, delta):
    (one, two, three), whole = segments(rate, delta)
    left, right = one.then(two).then(three), one.then(two.then(three))
    for name, x in left.tensors().items():
        torch.testing.assert_close(x, right.tensors()[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left.memory, whole.memory, rtol=1e-10, atol=1e-10)
    if delta or rate != "none":  # order matters, but to sums
        assert (one.then(three).then(two).memory - whole.memory).abs().max() > 1e-3


def test_additive_and_delta_segments_compose_with_each_other(seed):
    b, h, n, d = 1, 1, 6, 3
    k, v = torch.randn(2, 3, b, h, n, d, dtype=torch.float64)
    decay = torch.full((b, h, n), -0.2, dtype=torch.float64)
    _, add = scan(k[0], k[0], v[0], log_decay=decay)
    _, raw = scan(k[1], k[1], v[1], beta=0.5)
    delta = ScanState(raw.memory, transition=transition(k[1], beta=0.5))
    _, last = scan(k[2], k[2], v[2], log_decay=decay)
    _, after = scan(k[1], k[1], v[1], beta=0.5, state=add)
    _, after = scan(k[2], k[2], v[2], log_decay=decay, state=after)
    for composed in (add.then(delta).then(last), add.then(delta.then(last))):
        torch.testing.assert_close(composed.memory, after.memory)


def test_an_empty_past_is_the_neutral_state(seed):
    (one, *_), _ = segments("token", False)
    nothing = ScanState(torch.zeros_like(one.memory), torch.zeros_like(one.log_decay))
    for state in (nothing.then(one), one.then(nothing)):
        assert torch.equal(state.memory, one.memory)
        assert torch.equal(state.log_decay, one.log_decay)


def test_momentum_states_compose_associatively_and_give_the_whole(seed):
    q, v = torch.randn(2, 1, 2, 24, 3, dtype=torch.float64)
    rates = -torch.rand(2, 1, 2, 24, dtype=torch.float64)
    states = []
    for part in (slice(0, 5), slice(5, 16), slice(16, 24)):
        own = {"log_momentum": rates[0][:, :, part], "log_decay": rates[1][:, :, part]}
        states.append(scan_momentum(q[:, :, part], q[:, :, part], v[:, :, part], **own)[1])
    one, two, three = states
    _, whole = scan_momentum(q, q, v, log_momentum=rates[0], log_decay=rates[1], chunk=7)
    for state in (one.then(two).then(three), one.then(two.then(three))):
        for name, x in whole.tensors().items():
            torch.testing.assert_close(state.tensors()[name], x, rtol=1e-10, atol=1e-12)


def test_a_carried_state_keeps_the_total_decay(seed):
    x = torch.randn(1, 2, 8, 3)
    _, early = scan(x, x, x, log_decay=-0.25)
    _, both = scan(x, x, x, log_decay=-0.5, state=early)
    torch.testing.assert_close(both.log_decay, torch.full((1, 2, 1), -6.0))


@pytest.mark.parametrize("kind", [ScanState, MomentumState])
def test_states_are_saved_as_named_tensors(seed, kind):
    x = torch.randn(1, 2, 8, 3, requires_grad=True)
    run = scan if kind is ScanState else scan_momentum
    extra = {} if kind is ScanState else {"log_momentum": -1.0}
    _, state = run(x, x, x, **extra)
    file = io.BytesIO()
    torch.save(state.tensors(), file)
    file.seek(0)
    again = kind(**torch.load(file))
    assert all(torch.equal(y, again.tensors()[name]) for name, y in state.tensors().items())
    assert state.memory.requires_grad
    assert not state.detach().memory.requires_grad
    assert state.nbytes == sum(4 * y.numel() for y in state.tensors().values())


def test_composing_what_cannot_be_composed_says_why(seed):
    x = torch.randn(1, 2, 8, 3)
    _, additive = scan(x, x, x)
    _, delta = scan(x, x, x, beta=0.5)
    with pytest.raises(RegardError, match="transition"):
        additive.then(delta)
    with pytest.raises(RegardError, match="a memory of shape"):
        additive.then(scan(x, x, x, normalize=1e-6)[1])
    _, moving = scan_momentum(x, x, x, log_momentum=-1.0)
    _, learning = scan_momentum(x, x, x, log_momentum=-1.0, beta=0.1)
    with pytest.raises(RegardError, match="momentum state without transition"):
        moving.then(learning)


def test_documents_start_where_their_number_changes():
    ids = torch.tensor([[3, 3, 1, 1, 3], [0, 0, 0, 0, 0]])
    assert starts(ids).int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
