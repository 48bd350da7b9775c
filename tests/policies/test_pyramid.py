"""Budgets of PyramidKV: the paper's slope where it leaves the last layers a window, else even."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.policies import policy
from tests.architectures import sharp_llama

LAYERS, N, W = 4, 120, 4


@torch.no_grad()
def kept(keep: int, beta: float = 4.0) -> list[int]:
    """Keys that each layer keeps."""
    model = sharp_llama(LAYERS)
    ids = torch.randint(5, 60, (1, N), generator=torch.Generator().manual_seed(0))
    made = policy("pyramid_kv", window=W, beta=beta)
    with regard.shrink(model, made, keep=keep, check=False) as shrunk:
        model(ids)
        return [int(x.kept[0]) for x in shrunk.report().layers]


def test_budgets_fall_in_even_steps_to_a_share_of_the_mean() -> None:
    sizes = kept(40)  # 36 older ones: 63 to 9
    assert sizes == [W + 63, W + 45, W + 27, W + 9]
    assert sum(sizes) == 40 * LAYERS


def test_a_first_layer_that_can_keep_all_leaves_the_rest_to_the_last() -> None:
    sizes = kept(100)  # 96 older ones; the first layer has 116
    assert sizes[0] == N
    assert abs(sum(sizes) - 100 * LAYERS) <= LAYERS


@pytest.mark.parametrize("keep", [1, 3, 4, 5, 8, 19])
def test_small_budgets_are_even(keep: int) -> None:
    """The last layer would keep fewer older keys than it has in its window."""
    assert kept(keep) == [keep] * LAYERS
