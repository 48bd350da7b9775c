"""Laws of scans over broken tokens: what comes before does not read them, what comes after does."""

import pytest
import torch

from regard.core.scan import prefix_softmax, starts, unordered
from regard.run.scanning import scan, scan_momentum

N, AT = 11, 6


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def averaged(q, k, v, *, state=None, form=None, **settings):
    """Average by the scores of one key channel, as a scan does."""
    chunk = 1 if form == "recurrent" else 4
    return prefix_softmax(k[..., 0], v, state=state, chunk=chunk, **settings)


def scanned(**rates):
    def run(q, k, v, **settings):
        return scan(q, k, v, chunk=4, **rates, **settings)

    return run


def moved(q, k, v, **settings):
    return scan_momentum(q, k, v, log_momentum=-0.5, log_decay=-0.1, chunk=4, **settings)


SCANS = {
    "plain": scanned(),
    "decay": scanned(log_decay=-0.3),
    "channels": scanned(log_decay=torch.full((2, 3), -0.3, dtype=torch.float64)),
    "divided": scanned(normalize=1e-6),
    "delta": scanned(beta=0.3),
    "momentum": moved,
    "prefix": averaged,
}
FORMS = (None, "recurrent", "parallel")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", SCANS)
def test_a_broken_token_reaches_itself_and_what_follows(kind, form, where, poison):
    run = SCANS[kind]
    inputs = {"q": normal(2, 2, N, 3), "k": normal(2, 2, N, 3), "v": normal(2, 2, N, 2)}
    if kind == "divided":
        inputs = {name: x.detach().exp().requires_grad_() for name, x in inputs.items()}
    broken = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    with torch.no_grad():
        broken[where][1, 0, AT, 0] = poison
    wanted, _ = run(**inputs, form=form)
    out, _ = run(**broken, form=form)
    removed = kind == "prefix" and where == "k" and poison == -float("inf")
    keeps = torch.ones(2, 2, N, dtype=torch.bool)
    keeps[1, 0, AT:] = removed
    if not removed:
        assert torch.equal(out.isfinite().all(-1), keeps)
        assert torch.allclose(out[keeps], wanted[keeps], atol=1e-12)
        read = ["k", "v"] if kind == "prefix" else ["q", "k", "v"]
        want = torch.autograd.grad(wanted[keeps].square().sum(), [inputs[x] for x in read])
        got = torch.autograd.grad(out[keeps].square().sum(), [broken[x] for x in read])
        for a, b in zip(want, got, strict=True):
            assert torch.allclose(a, b, atol=1e-10)
    else:
        assert out.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", sorted(set(SCANS) - {"delta"}))
def test_a_text_before_another_may_hold_anything(kind, form):
    q, k, v = normal(1, 2, N, 3), normal(1, 2, N, 3), normal(1, 2, N, 2)
    reset = starts((torch.arange(N) >= 5).long()[None])
    wanted, held = SCANS[kind](q, k, v, reset=reset, form=form)
    with torch.no_grad():
        v[:, :, 2] = torch.nan
    out, state = SCANS[kind](q, k, v, reset=reset, form=form)
    assert torch.equal(out[:, :, 5:], wanted[:, :, 5:])
    assert torch.equal(out[:, :, :2], wanted[:, :, :2])
    assert out[:, :, 2:5].isnan().all()
    for a, b in zip(tensors(state), tensors(held), strict=True):
        assert torch.equal(a, b)


def tensors(state):
    return list(state) if isinstance(state, tuple) else list(state.tensors().values())


@pytest.mark.parametrize("kind", SCANS)
def test_a_broken_token_stays_in_the_state_until_a_reset(kind):
    run = SCANS[kind]
    q, k, v = normal(1, 2, N, 3), normal(1, 2, N, 3), normal(1, 2, N, 2)
    with torch.no_grad():
        k[:, :, 2] = torch.nan
    whole, _ = run(q, k, v)
    outs, state = [], None
    for t in range(N):
        out, state = run(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state)
        outs.append(out)
    assert torch.allclose(torch.cat(outs, 2), whole, equal_nan=True, atol=1e-12)
    if kind == "delta":
        return
    fresh = torch.zeros(1, 5, dtype=torch.bool)
    fresh[:, 1] = True
    part = [x[:, :, -5:] for x in (q, k, v)]
    out, healed = run(*part, state=state, reset=fresh)
    assert torch.equal(out.isnan().any(-1)[0, 0], torch.tensor([True, *[False] * 4]))
    assert tensors(healed)[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", SCANS)
def test_padding_may_hold_anything(kind, form):
    q, k, v = normal(2, 2, N, 3), normal(2, 2, N, 3), normal(2, 2, N, 2)
    keep = torch.ones(2, N, dtype=torch.bool)
    keep[0, :3] = keep[1, 4] = False
    wanted, held = SCANS[kind](q, k, v, keep=keep, form=form)
    gone = ~keep[:, None, :, None]
    k, v = k.masked_fill(gone, torch.nan), v.masked_fill(gone, torch.inf)
    out, state = SCANS[kind](q, k, v, keep=keep, form=form)
    assert torch.equal(out, wanted)
    for a, b in zip(tensors(state), tensors(held), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
def test_without_order_other_texts_and_padding_may_hold_anything(packed):
    q, k, v = normal(2, 2, N, 3), normal(2, 2, N, 3), normal(2, 2, N, 2)
    keep = torch.ones(2, N, dtype=torch.bool)
    keep[:, 8] = False
    documents = (torch.arange(N) >= 5).long().expand(2, N) if packed else None
    wanted = unordered(q, k, v, keep=keep, documents=documents)
    with torch.no_grad():
        k[:, :, 8], v[:, :, 8] = torch.nan, torch.inf
        if packed:
            v[0, :, 2] = torch.nan
    out = unordered(q, k, v, keep=keep, documents=documents)
    sound = torch.ones(2, N, dtype=torch.bool)
    sound[0, :5] = not packed
    assert torch.equal(out.isfinite().all(-1).all(1), sound)
    sound = sound[:, None, :, None].expand_as(out)
    assert torch.allclose(out[sound], wanted[sound], atol=1e-12)
