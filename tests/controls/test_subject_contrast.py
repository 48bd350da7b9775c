"""Losses that contrast views of subjects, and the encoder of a subject's tokens."""

from __future__ import annotations

import math

import pytest
import torch

from regard.controls.diffusion import SubjectEncoder, appearance_ranking, subject_contrast
from regard.core.errors import RegardError

SUBJECTS = torch.tensor([0, 1, 0, 2, 1, 0])
SEEN = torch.randn(1, 3, 6)


def test_the_contrast_is_that_of_pairs_written_out() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    cos = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    total, views = 0.0, 0
    for i in range(6):
        own = [j for j in range(6) if j != i and SUBJECTS[j] == SUBJECTS[i]]
        if not own:  # the only view of its subject
            continue
        all_ = sum(math.exp(cos[i, j] / 0.2) for j in range(6) if j != i)
        total -= sum(math.log(math.exp(cos[i, j] / 0.2) / all_) for j in own) / len(own)
        views += 1
    assert float(subject_contrast(x, SUBJECTS, 0.2)) == pytest.approx(total / views)


def test_the_ranking_is_that_of_triples_written_out() -> None:
    scales = torch.randn(2, 6, 5, dtype=torch.float64).unbind()
    found = []
    for x in scales:
        cos = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
        found.append([
            max(0.0, float(0.1 + cos[i, k] - cos[i, j]))
            for i in range(6) for j in range(6) for k in range(6)
            if j != i and SUBJECTS[j] == SUBJECTS[i] and SUBJECTS[k] != SUBJECTS[i]
        ])  # fmt: skip
    want = sum(sum(x) / len(x) for x in found) / 2
    assert float(appearance_ranking(scales, SUBJECTS)) == pytest.approx(want)


def test_both_have_gradients_and_ignore_the_length_of_a_vector() -> None:
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    for loss in (subject_contrast, lambda y, s: appearance_ranking([y], s)):
        assert torch.autograd.gradcheck(lambda y, loss=loss: loss(y, SUBJECTS), (x,))
        torch.testing.assert_close(loss(3 * x, SUBJECTS), loss(x, SUBJECTS))


def test_every_parameter_of_the_encoder_learns() -> None:
    encoder = SubjectEncoder(8, features=6, scales=2, tokens=3, heads=2)
    features = [torch.randn(2, 9, 6), torch.randn(2, 4, 6)]
    encoder(features, torch.randn(2, 2, 8)).square().sum().backward()
    assert all(x.grad is not None and bool((x.grad != 0).any()) for x in encoder.parameters())


WRONG = {
    "labels of fewer views": (lambda: subject_contrast(torch.randn(3, 2), torch.zeros(2)), "views"),
    "one view of each": (
        lambda: subject_contrast(torch.randn(3, 2), torch.arange(3)), "one view of each",
    ),
    "no temperature": (
        lambda: subject_contrast(torch.randn(2, 2), torch.zeros(2), 0.0), "above 0",
    ),
    "no scale": (lambda: appearance_ranking([], SUBJECTS), "each scale"),
    "a scale is missing": (
        lambda: SubjectEncoder(8, features=6, scales=2)([SEEN], torch.randn(1, 2, 8)),
        "2 tensors",
    ),
    "words of another size": (
        lambda: SubjectEncoder(8, features=6, scales=1)([SEEN], torch.randn(1, 2, 7)),
        "b, t, 8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(RegardError, match=said):
        call()
