"""Softmax over prefixes against softmax over each prefix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import RegardError
from regard.core.partial import Partial
from regard.core.scan import prefix_softmax, starts


@given(
    st.integers(1, 40), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 2**31 - 1)
)
def test_equals_softmax_over_each_prefix(n, chunk, padded, packed, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, 2, n, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 2, n, 3, generator=generator, dtype=torch.float64)
    keep = torch.rand(2, n, generator=generator) > 0.4 if padded else None
    documents = (torch.rand(2, n, generator=generator) > 0.7).long().cumsum(1) if packed else None
    mask = torch.ones(2, n, n, dtype=torch.bool).tril()
    if keep is not None:
        mask &= keep[:, None]
    if documents is not None:
        mask &= documents[:, :, None] == documents[:, None]
    rows = scores[:, :, None].masked_fill(~mask[:, None], -torch.inf)
    wanted = rows.softmax(-1).nan_to_num(0) @ v
    reset = None if documents is None else starts(documents)
    found, state = prefix_softmax(scores, v, keep=keep, reset=reset, chunk=chunk)
    assert torch.allclose(found, wanted, atol=1e-10)
    assert torch.equal(state.out, found[:, :, -1:])


def test_goes_on_from_its_state_and_has_gradients():
    scores = torch.randn(1, 2, 11, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 2, 11, 3, dtype=torch.float64, requires_grad=True)

    def in_two(s, x):
        first, state = prefix_softmax(s[..., :4], x[:, :, :4], chunk=3)
        rest, _ = prefix_softmax(s[..., 4:], x[:, :, 4:], state=Partial(*state), chunk=3)
        return torch.cat((first, rest), 2)

    assert torch.allclose(in_two(scores, v), prefix_softmax(scores, v)[0])
    assert torch.autograd.gradcheck(in_two, (scores, v))


def test_half_precision_is_summed_in_single():
    scores, v = torch.randn(1, 1, 500), torch.randn(1, 1, 500, 4)
    fine, _ = prefix_softmax(scores, v)
    rough, state = prefix_softmax(scores.bfloat16(), v.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert state.lse.dtype == torch.float32
    assert (rough.float() - fine).norm() / fine.norm() < 0.02


def test_scores_of_other_tokens_are_refused():
    with pytest.raises(RegardError):
        prefix_softmax(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 1))
