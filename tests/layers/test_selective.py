"""Selective attention that drops keys while it decodes."""

import pytest
import torch

from regard.core.errors import RegardError
from regard.layers.selective import SelectiveAttention


def decoded(layer, x, first):
    memory = layer.memory()
    steps = [layer(x[:, :first], memory=memory)]
    steps += [layer(x[:, i : i + 1], memory=memory) for i in range(first, x.shape[1])]
    return torch.cat(steps, 1), memory


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("first", [1, 9])
@torch.no_grad()
def test_room_for_all_is_no_pruning(kv_heads, first, seed):
    layer = SelectiveAttention(32, heads=4, kv_heads=kv_heads, position="rotary")
    pruned = SelectiveAttention(32, heads=4, kv_heads=kv_heads, keep=20, position="rotary")
    pruned.load_state_dict(layer.state_dict())
    x = torch.randn(2, 20, 32)
    torch.testing.assert_close(decoded(pruned, x, first)[0], layer(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_dropped_has_the_most_votes_and_the_first_token_stays(seed):
    layer = SelectiveAttention(32, heads=4, keep=5)
    x = torch.randn(3, 16, 32)
    memory = layer.memory()
    whole = SelectiveAttention(32, heads=4)
    whole.load_state_dict(layer.state_dict())
    all_of_it = whole.memory()
    layer(x, memory=memory)
    whole(x, memory=all_of_it)
    votes, kept = all_of_it.get("votes"), memory.get("keys").positions[:, 0]
    assert kept.shape == (3, 5)
    assert bool((kept[:, 0] == 0).all())
    assert torch.equal(memory.get("votes"), votes.gather(1, kept.long()))
    rest = votes.clone().scatter_(1, kept.long(), torch.inf)
    assert bool((memory.get("votes").amax(1) <= rest.amin(1)).all())
    assert memory.nbytes < all_of_it.nbytes


def test_a_room_of_nothing_is_refused():
    with pytest.raises(RegardError, match="keep"):
        SelectiveAttention(32, heads=4, keep=0)
