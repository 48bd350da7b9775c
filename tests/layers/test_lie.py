"""Attention among points: neighborhoods, padding, and what goes wrong."""

import pytest
import torch

from regard.core.errors import RegardError
from regard.layers.lie import LieAttention, LieTransformer, lift


def test_far_points_are_out_of_reach():
    torch.manual_seed(0)
    layer, x = LieAttention(16, heads=2, reach=5.0), torch.randn(1, 6, 16)
    g = lift(torch.cat((torch.randn(1, 3, 2), 100 + torch.randn(1, 3, 2)), 1), torch.zeros(1))
    changed = torch.cat((x[:, :3], torch.randn(1, 3, 16)), 1)
    assert torch.allclose(layer.among(changed, g)[:, :3], layer.among(x, g)[:, :3], atol=1e-6)


def test_padding_is_left_out():
    torch.manual_seed(0)
    layer, x, g = LieAttention(16, heads=2), torch.randn(1, 6, 16), torch.randn(1, 6, 3)
    real = torch.tensor([[True] * 4 + [False] * 2])
    found = layer.among(x, g, padding=real)[:, :4]
    assert torch.allclose(found, layer.among(x[:, :4], g[:, :4]), atol=1e-6)


def test_gradients_reach_every_parameter_and_the_points():
    torch.manual_seed(0)
    model = LieTransformer(features=3, dim=16, heads=2, out=2, turns=2).double()
    f, points = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 2).double().requires_grad_()
    model(f, points).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert torch.autograd.gradcheck(lambda p: model(f, p), (points,), fast_mode=True)


WRONG = {
    "points of three numbers": lambda: lift(torch.zeros(1, 4, 3), torch.zeros(1)),
    "elements of other points": lambda: LieAttention(16, heads=2).among(
        torch.zeros(1, 4, 16), torch.zeros(1, 3, 3)
    ),
    "no turns": lambda: LieTransformer(features=1, dim=8, heads=2, out=1, turns=0),
    "no features": lambda: LieTransformer(features=0, dim=8, heads=2, out=1),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    with pytest.raises(RegardError):
        WRONG[name]()
