"""Subspaces carried from one kind of label to another, where the answer is known."""

from __future__ import annotations

import pytest
import torch

from regard.analysis.compress import Choices, transfer
from regard.core import errors

CORNERS = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()


def questions(frame, own=None, noise=0.05):
    """Ask 200 questions; labels of the n-th item lie along the n-th corner of `frame` [d, 3].

    What all labels of a kind share, `own` [d], changes no choice.
    """
    right = torch.randint(4, (200,))
    d = len(frame)
    labels = 3 * CORNERS @ frame.T
    k = labels.expand(200, 4, d) + noise * torch.randn(200, 4, d).double()
    k = k if own is None else k + own
    return Choices(labels[right] + noise * torch.randn(200, d).double(), k, right)


def test_shared_directions_carry_over():
    frame = torch.linalg.qr(torch.randn(16, 16).double()).Q
    found = transfer(questions(frame[:, :3]), questions(frame[:, :3], own=5 * frame[:, 8]), 3)
    assert found.accuracy == found.own == found.carried == 1
    assert min(found.query_cosines.min(), found.key_cosines.min()) > 0.99


def test_directions_of_their_own_do_not():
    frame = torch.linalg.qr(torch.randn(16, 16).double()).Q
    found = transfer(questions(frame[:, :3]), questions(frame[:, 4:7], noise=0.3), 3)
    assert found.accuracy > 0.99
    assert found.own > 0.99
    # because: one of four by chance, and four standard errors of 200 questions
    assert abs(found.carried - 0.25) < 0.13
    assert max(found.query_cosines.abs().max(), found.key_cosines.abs().max()) < 0.3


def test_permuted_items_are_told_by_the_cosines():
    """The subspace is the same, but the n-th item is another feature."""
    frame = torch.linalg.qr(torch.randn(16, 16).double()).Q[:, :3]
    one, two = questions(frame), questions(frame)
    moved = Choices(two.q, two.k.roll(1, 1), (two.right + 1) % 4)
    found = transfer(one, moved, 3)
    assert found.carried == 1
    assert max(found.query_cosines.max(), found.key_cosines.max()) < 0


def test_other_sizes_are_refused():
    one = Choices(torch.randn(5, 8), torch.randn(5, 4, 8), torch.zeros(5))
    with pytest.raises(errors.ShapeError, match="second"):
        transfer(one, Choices(torch.randn(5, 8), torch.randn(5, 3, 8), torch.zeros(5)), 2)
    with pytest.raises(errors.ShapeError, match="keys of all labels"):
        Choices(torch.randn(5, 8), torch.randn(4, 4, 8), torch.zeros(5))
