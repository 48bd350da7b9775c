"""Padding in layers that mix whole sequences: each row is what it is alone, and peers agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core import errors
from regard.layers.agents import shares
from regard.layers.lie import LieTransformer


@pytest.mark.parametrize("length", [1, 3, 5, 6, 17, 20])
def test_agents_of_real_tokens_are_adaptive_pooling(length):
    x = torch.randn(1, 20, 4)
    real = torch.zeros(1, 20, dtype=torch.bool)
    real[0, torch.randperm(20)[:length]] = True
    wanted = F.adaptive_avg_pool1d(x[0][real[0]].mT[None], 5).mT
    torch.testing.assert_close(shares(real, 5) @ x.masked_fill(~real[..., None], 0), wanted)


@pytest.mark.parametrize("name", ["agent_attention", "ran_recurrent_attention"])
@pytest.mark.parametrize("left", [False, True])
def test_a_padded_row_is_what_it_is_alone(name, left):
    settings = {"agents": 5} if name == "agent_attention" else {"window": 6, "least": 3}
    layer = regard.layer(name, dim=32, heads=4, **settings)
    lengths = [20, 14, 13, 14, 1]
    x = torch.randn(5, 20, 32)
    real = torch.zeros(5, 20, dtype=torch.bool)
    for row, n in enumerate(lengths):
        real[row, 20 - n if left else 0 : None if left else n] = True
    with torch.no_grad():
        padded = layer(x, padding=real)
        for row in range(5):
            alone = layer(x[row][real[row]][None])[0]
            torch.testing.assert_close(padded[row][real[row]], alone, atol=1e-5, rtol=1e-5)


def test_agents_skip_padding_of_a_context():
    layer = regard.layer("agent_attention", dim=32, heads=4, agents=5, context_dim=16)
    x, context = torch.randn(2, 9, 32), torch.randn(2, 12, 16)
    real = torch.arange(12).expand(2, -1) < 7
    with torch.no_grad():
        wanted = layer(x, context[:, :7])
        torch.testing.assert_close(layer(x, context, padding=real), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("turns", [1, 4])
@pytest.mark.parametrize("filler", [0.0, 1e6, float("nan")])
def test_sets_of_points_may_be_of_different_sizes(turns, filler):
    model = LieTransformer(features=3, dim=16, heads=2, out=2, turns=turns)
    f, points = torch.randn(3, 7, 3), torch.randn(3, 7, 2)
    real = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    f, points = (x.masked_fill(~real[..., None], filler) for x in (f, points))
    padded = model(f, points, padding=real)
    for row, n in enumerate((7, 4, 1)):
        alone = model(f[row : row + 1, :n], points[row : row + 1, :n])
        torch.testing.assert_close(padded[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    (pull,) = torch.autograd.grad(padded.sum(), model.leave.weight)
    assert pull.isfinite().all()


def test_a_mask_of_another_kind_is_named():
    model = LieTransformer(features=3, dim=16, heads=2, out=2)
    with pytest.raises(errors.DtypeError, match="padding"):
        model(torch.randn(1, 4, 3), torch.randn(1, 4, 2), padding=torch.ones(1, 4))
