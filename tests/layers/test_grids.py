"""Translating on a grid: what goes wrong is named."""

import pytest
import torch

from regard.core.errors import RegardError
from regard.layers.pervasive import PervasiveAttention

WRONG = {
    "no layers": ({"layers": 0}, "layers"),
    "an even kernel": ({"kernel": 4}, "kernel"),
    "a kernel of none": ({"kernel": 0}, "kernel"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    given, argument = WRONG[name]
    with pytest.raises(RegardError) as raised:
        PervasiveAttention(**{"source_vocab": 5, "target_vocab": 5, "dim": 4, **given})
    assert raised.value.argument == argument


def test_tokens_are_whole_numbers_in_a_batch():
    model = PervasiveAttention(source_vocab=5, target_vocab=5, dim=4, layers=1, growth=4)
    with pytest.raises(RegardError, match="`source`"):
        model(torch.zeros(3).long(), torch.zeros(1, 2).long())
    with pytest.raises(RegardError, match="`target`"):
        model(torch.zeros(1, 3).long(), torch.zeros(1, 2))


def test_every_parameter_is_reached():
    torch.manual_seed(0)
    model = PervasiveAttention(source_vocab=5, target_vocab=6, dim=4, layers=2, growth=4)
    model(torch.randint(0, 5, (4, 6)), torch.randint(0, 6, (4, 5))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
