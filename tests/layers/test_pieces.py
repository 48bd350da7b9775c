"""A layer that makes its features piece by piece gives what it gives all at once."""

import pytest
import torch

from regard.layers.polynomial import Fastmax


@pytest.mark.parametrize("piece", [4, 7, 64])
def test_pieces_are_the_whole(piece, monkeypatch):
    torch.manual_seed(0)
    layer, x = Fastmax(32, heads=4, causal=True).double(), torch.randn(2, 30, 32).double()
    padding = torch.ones(2, 30, dtype=torch.bool)
    padding[0, :5] = False
    for given in ({}, {"padding": padding}):
        monkeypatch.setattr(Fastmax, "piece", None)
        inputs = x.clone().requires_grad_()
        whole = layer(inputs, **given)
        (wanted,) = torch.autograd.grad(whole.square().sum(), inputs)
        monkeypatch.setattr(Fastmax, "piece", piece)
        inputs = x.clone().requires_grad_()
        out = layer(inputs, **given)
        assert torch.allclose(out, whole)
        (grad,) = torch.autograd.grad(out.square().sum(), inputs)
        assert torch.allclose(grad, wanted)
        memory = layer.memory()
        first = {} if not given else {"padding": padding[:, :11]}
        then = {} if not given else {"padding": padding[:, 11:]}
        decoded = [
            layer(x[:, :11], memory=memory, **first),
            layer(x[:, 11:], memory=memory, **then),
        ]
        assert torch.allclose(torch.cat(decoded, 1), whole)
