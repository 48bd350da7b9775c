"""Walking down a tree: gradients, and what goes wrong."""

import pytest
import torch

from regard.core.errors import RegardError
from regard.layers.trees import TreeCrossAttention


def test_paths_are_learned_from_rewards_and_values_from_the_task():
    torch.manual_seed(0)
    layer = TreeCrossAttention(16, heads=2).train()
    x, context = torch.randn(2, 3, 16), torch.randn(2, 16, 16)
    out, walk = layer(x, context)
    (out.square().sum() + layer.walking_loss(walk, torch.ones(2, 3))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_one_reward_makes_one_path_likelier():
    torch.manual_seed(0)
    layer = TreeCrossAttention(16, heads=2).train()
    x, context = torch.randn(1, 1, 16), torch.randn(1, 8, 16)
    before = []
    sgd = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(60):
        _, walk = layer(x, context)
        left = (walk.place[0, 0, -1] < 4).float()  # the group it ended in
        loss = layer.walking_loss(walk, left.expand(1, 1), curiosity=0.0)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        before.append(float(left))
    assert sum(before[-20:]) >= sum(before[:20])
    assert sum(before[-20:]) > 15


WRONG = {
    "one branch": (lambda: TreeCrossAttention(16, heads=2, branches=1), "branches"),
    "no leaves": (lambda: TreeCrossAttention(16, heads=2, leaves=0), "leaves"),
    "no batch": (
        lambda: TreeCrossAttention(16, heads=2).tree(torch.zeros(4, 16)),
        "context",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    attempt, argument = WRONG[name]
    with pytest.raises(RegardError) as raised:
        attempt()
    assert raised.value.argument == argument
