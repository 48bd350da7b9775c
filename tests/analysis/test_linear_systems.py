"""Converted systems are the mechanisms they come from: our scans and layers, and plain loops."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.analysis.linear_systems import (
    LinearSystem,
    gated,
    linear_attention,
    selective,
    taylor_power,
)
from regard.core.errors import ShapeError, ValueRangeError
from regard.core.features import elu_plus_one
from regard.layers.recurrent import Linear

N, F_, E, U = 12, 4, 3, 5


def draws(*shapes):
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("normalize", [None, 1e-12])
def test_linear_attention_is_our_scan(normalize):
    torch.manual_seed(0)
    q, k, w_v, u = draws((N, F_), (N, F_), (E, U), (N, U))
    q, k = elu_plus_one(q), elu_plus_one(k)
    eta = torch.ones(N, dtype=torch.float64) if normalize is None else None
    system = linear_attention(q, k, w_v, eta)
    v = u @ w_v.T
    wanted = regard.scan(q[None, None], k[None, None], v[None, None], normalize=normalize)[0][0, 0]
    assert torch.allclose(system.run(u), wanted, atol=1e-10)
    assert torch.allclose(torch.einsum("ijyu,ju->iy", system.phi(), u), wanted, atol=1e-10)
    assert system.states == F_ * E


def test_linear_attention_is_our_layer():
    torch.manual_seed(1)
    layer = Linear(16, heads=1, causal=True).double()
    (x,) = draws((N, 16))
    w_q, w_k, w_v, w_o = (
        p.weight.detach() for p in (layer.to_q, layer.to_k, layer.to_v, layer.to_out)
    )
    system = linear_attention(elu_plus_one(x @ w_q.T), elu_plus_one(x @ w_k.T), w_v)
    assert torch.allclose(system.run(x) @ w_o.T, layer(x[None])[0], atol=1e-8)


def test_a_selective_model_is_its_loop():
    torch.manual_seed(2)
    step, rates, b, c, u = draws((N, U), (U, 3), (N, 3), (N, 3), (N, U))
    step, rates = F.softplus(step), rates.exp()
    state, wanted = torch.zeros(U, 3, dtype=torch.float64), []
    for i in range(N):
        state = torch.exp(-step[i][:, None] * rates) * state + (step[i] * u[i])[:, None] * b[i]
        wanted.append(state @ c[i])
    system = selective(step, rates, b, c)
    phi = torch.einsum("ijyu,ju->iy", system.phi(), u)
    assert torch.allclose(phi, torch.stack(wanted), atol=1e-10)
    assert torch.allclose(system.run(u), phi, atol=1e-10)
    assert system.states == U * 3


def test_a_gated_recurrence_is_its_loop_and_our_scan():
    torch.manual_seed(3)
    forget, enter, out, w_c, u = draws((N, F_), (N, F_), (N, F_), (F_, U), (N, U))
    forget, enter, out = (x.sigmoid() for x in (forget, enter, out))
    state, wanted = torch.zeros(F_, dtype=torch.float64), []
    for i in range(N):
        state = forget[i] * state + enter[i] * (w_c @ u[i])
        wanted.append(out[i] * state)
    system = gated(forget, enter, w_c, out)
    assert torch.allclose(system.run(u), torch.stack(wanted), atol=1e-10)
    # As a scan: a channel is a head with one key channel, whose value is what enters.
    content = (enter * (u @ w_c.T)).T[None, ..., None]
    ones = torch.ones_like(content)
    seen, _ = regard.scan(ones, ones, content, log_decay=forget.log().T[None])
    assert torch.allclose(out * seen[0, ..., 0].T, torch.stack(wanted), atol=1e-10)


def test_what_is_skipped_stands_on_the_diagonal():
    torch.manual_seed(4)
    passage, write, read, skip, u = draws((N, 3), (N, 3, U), (N, E, 3), (N, E, U), (N, U))
    system = LinearSystem(passage.sigmoid(), write, read, skip)
    plain = LinearSystem(passage.sigmoid(), write, read)
    phi = system.phi()
    assert torch.allclose(torch.einsum("ijyu,ju->iy", phi, u), system.run(u), atol=1e-10)
    place = torch.arange(N)
    assert torch.allclose((phi - plain.phi())[place, place], skip, atol=1e-12)
    assert not phi[place[:, None] < place].any()


@pytest.mark.parametrize("order", range(5))
def test_power_features_give_the_series_of_the_exponential(order):
    torch.manual_seed(5)
    x, y = draws((6, 3), (6, 3))
    product = (x * y).sum(-1)
    wanted = sum(
        product**p / torch.tensor(p).double().add(1).lgamma().exp() for p in range(order + 1)
    )
    found = taylor_power(x, order)
    assert torch.allclose((found * taylor_power(y, order)).sum(-1), wanted, atol=1e-10)
    assert found.shape[-1] == sum(3**p for p in range(order + 1))


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: LinearSystem(torch.ones(3, 2), torch.ones(3, 4, 1), torch.ones(3, 1, 2)),
         ShapeError, "write"),
        (lambda: linear_attention(torch.zeros(3, 2), torch.ones(3, 2), torch.ones(1, 1)),
         ValueRangeError, "normalizer"),
        (lambda: taylor_power(torch.ones(2), -1), ValueRangeError, "order"),
    ],
)  # fmt: skip
def test_bad_systems_are_refused(ask, error, says):
    with pytest.raises(error, match=says):
        ask()
