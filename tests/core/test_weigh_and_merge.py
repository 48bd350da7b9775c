"""Running forms of weighs equal whole ones, pulls are gradients, and partials are a monoid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.call import Call
from regard.core.heads import gate_heads
from regard.core.partial import Partial, merge, nothing
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.core.weigh import Relu, Sigmoid, Signed, Softmax
from regard.run.reference import Reference, score_matrix

H, N = 4, 9
WEIGHS = [Softmax(), Signed(), Sigmoid(-1.0), Relu(), Relu(2, 0.5), Relu(3)]


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert not x.isnan().any()
            torch.testing.assert_close(x, y)


@st.composite
def rows(draw):
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    m = draw(st.integers(1, 12))
    scores = rand(1, 2, 3, m) * draw(st.sampled_from([1.0, 30.0]))
    removed = torch.rand(scores.shape) < draw(st.sampled_from([0.0, 0.3]))
    scores = scores.masked_fill(removed, -torch.inf)
    allowed = torch.rand(scores.shape) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return scores, allowed, rand(1, 2, m, 5), draw(st.lists(st.integers(1, 5), min_size=1))


@pytest.mark.parametrize("weigh", WEIGHS, ids=repr)
@given(rows())
def test_running_equals_whole(weigh, given_):
    scores, allowed, v, cuts = given_
    whole = weigh.whole(scores, allowed, v)
    state, start = weigh.start(torch.zeros_like(whole.out)), 0
    while start < scores.shape[-1]:
        tile = slice(start, start + cuts[start % len(cuts)])
        state = weigh.update(state, scores[..., tile], allowed[..., tile], v[:, :, tile])
        start = tile.stop
    same(weigh.finish(state), whole)


@pytest.mark.parametrize("weigh", WEIGHS, ids=repr)
@given(rows())
def test_pull_is_the_gradient(weigh, given_):
    scores, allowed, v, _ = given_
    scores = torch.where(allowed, scores, -torch.inf).requires_grad_()
    out, lse = weigh.whole(scores, None, v)
    d_out, d_lse = rand(*out.shape), rand(*out.shape[:3])
    loss = (out * d_out).sum()
    if lse is not None:
        loss = loss + (torch.where(lse == -torch.inf, 0.0, lse) * d_lse).sum()
    (want,) = torch.autograd.grad(loss, scores)
    weights = weigh.weights(scores.detach(), None, lse)
    d_row = None if lse is None else d_lse - (d_out * out).sum(-1)
    got = weigh.pull(scores.detach(), weights, d_out @ v.transpose(-1, -2), lse, d_row)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("learned", [False, True])
def test_a_sink_is_a_key_of_no_value(learned, seed):
    q, k, v = rand(2, H, N, 8), rand(2, H, N, 8), rand(2, H, N, 3)
    logits = rand(H) if learned else torch.zeros(H, dtype=torch.float64)
    weigh = Softmax(sink=logits) if learned else Softmax(plus_one=True)
    ours = weigh.apply_sink(Reference().run(Call.of(q, k, v, Rule(Causal(), weigh=weigh))))
    scores, allowed = score_matrix(Call.of(q, k, v, Rule(Causal())))
    column = logits.view(1, -1, 1, 1).expand(2, H, N, 1)
    full = torch.cat([scores.masked_fill(~allowed, -torch.inf), column], -1)
    same(ours, (full.softmax(-1)[..., :N] @ v, full.logsumexp(-1)))


@st.composite
def parts(draw):
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        lse = rand(1, 2, 3) * draw(st.sampled_from([1.0, 40.0]))
        lse = lse.masked_fill(torch.rand(lse.shape) < 0.4, -torch.inf)
        out = rand(1, 2, 3, 4).masked_fill((lse == -torch.inf)[..., None], 0.0)
        found.append(Partial(out.requires_grad_(), lse.requires_grad_()))
    return found


@given(parts(), st.integers(0, 5), st.randoms())
def test_partials_are_a_commutative_monoid(given_, cut, random):
    whole = merge(*given_)
    same(merge(*given_, nothing(given_[0].out)), whole)
    shuffled = list(given_)
    random.shuffle(shuffled)
    same(merge(*shuffled), whole)
    if 0 < cut < len(given_):
        same(merge(merge(*given_[:cut]), merge(*given_[cut:])), whole)
    outs, lses = zip(*given_, strict=True)
    pulled = torch.where(whole.lse == -torch.inf, 0.0, whole.lse).sum() + whole.out.sum()
    grads = torch.autograd.grad(pulled, [*outs, *lses], allow_unused=True)
    assert all(g is None or not g.isnan().any() for g in grads)


@given(st.integers(0, 2**31 - 1), st.integers(1, 11))
def test_merging_parts_is_attending_to_the_union(seed, cut):
    torch.manual_seed(seed)
    q, k, v = rand(1, 2, 5, 4), rand(1, 2, 12, 4), rand(1, 2, 12, 3)
    halves = [
        Reference().run(Call.of(q, k[:, :, c], v[:, :, c])) for c in (slice(cut), slice(cut, 12))
    ]
    same(merge(*halves), Reference().run(Call.of(q, k, v)))


@pytest.mark.parametrize("shape", [(H,), (2, H), (2, H, N)])
def test_a_gate_scales_each_head(shape, seed):
    out, gate = rand(2, H, N, 3), rand(*shape)
    want = torch.stack(
        [torch.stack([out[b, h] * _gate(gate, b, h) for h in range(H)]) for b in range(2)]
    )
    torch.testing.assert_close(gate_heads(out, gate), want)


def _gate(gate, b, h):
    if gate.dim() == 1:
        return gate[h]
    return gate[b, h] if gate.dim() == 2 else gate[b, h][:, None]
