"""What a model hands to its attention and changes scores is read, or refused: never left out."""

import pytest
import torch
from torch import nn

from regard.models.hook import UnsupportedModelError

interface = pytest.importorskip("regard.models.attention_interface")


@pytest.mark.parametrize("name", interface.UNREAD)
def test_an_argument_that_no_rule_can_say_is_refused(name):
    q = torch.randn(1, 2, 3, 4)
    plain, _ = interface.attention(nn.Identity(), q, q, q, None, **{name: None})
    assert plain.shape == (1, 3, 2, 4)
    with pytest.raises(UnsupportedModelError, match=f"`{name}`"):
        interface.attention(nn.Identity(), q, q, q, None, **{name: torch.zeros(1, 2, 3, 1)})
