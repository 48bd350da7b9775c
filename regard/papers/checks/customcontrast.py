"""Contrasted views tell the subject, and not what surrounds it; weight 0 changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.controls.context import EditContext
from regard.controls.diffusion import CustomContrast, SubjectTokens, subject_contrast
from regard.controls.prompt import Prompt
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.picture_calls import pictures
from regard.run.runner import run

SUBJECTS, SURROUNDINGS, PLANTED, SEEN, KEPT = 16, 8, 8, 32, 8
VIEWS, STEPS, PROBED = 8, 2000, 4000


class _Views:
    """Vectors in which a subject, and more strongly what surrounds it, are mixed linearly."""

    def __init__(self) -> None:
        self.subjects = torch.randn(SUBJECTS, PLANTED)
        self.surroundings = 2 * torch.randn(SURROUNDINGS, PLANTED)
        self.mix = torch.randn(2 * PLANTED, SEEN) / PLANTED**0.5

    def of(self, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Return a view [n, seen] of each of some subjects [n], and the surroundings drawn."""
        around = torch.randint(SURROUNDINGS, subjects.shape)
        planted = torch.cat((self.subjects[subjects], self.surroundings[around]), 1)
        return planted @ self.mix + 0.1 * torch.randn(len(subjects), SEEN), around


def _probe(x: Tensor, y: Tensor, other: Tensor, kinds: int) -> Tensor:
    """Fit a linear probe of y on x, and return what it says of `other`."""
    one = torch.nn.functional.one_hot(y, kinds).double()
    x, other = (torch.cat((t, torch.ones(len(t), 1)), 1).double() for t in (x, other))
    return (other @ torch.linalg.lstsq(x, one).solution).argmax(-1)


@torch.no_grad()
def _accuracies(encode: Tensor, views: _Views) -> tuple[float, float]:
    """Accuracy of fresh probes of subject and surroundings, on views that they were not fit to."""
    (s, a), (t, b) = (
        (n, views.of(n)) for n in torch.randint(SUBJECTS, (2, PROBED)).unbind()
    )  # fmt: skip
    one, other = a[0] @ encode, b[0] @ encode
    subject = _probe(one, s, other, SUBJECTS) == t
    around = _probe(one, a[1], other, SURROUNDINGS) == b[1]
    return float(subject.double().mean()), float(around.double().mean())


def _contrasted(start: Tensor, views: _Views) -> Tensor:
    """Train a linear encoder [seen, kept] by the contrast of views."""
    encode = nn.Parameter(start.clone())
    adam = torch.optim.Adam([encode], 0.02)
    line = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 1e-3, STEPS)
    subjects = torch.arange(SUBJECTS).repeat(VIEWS)
    for _ in range(STEPS):
        loss = subject_contrast(views.of(subjects)[0] @ encode, subjects)
        (encode.grad,) = torch.autograd.grad(loss, (encode,))
        adam.step()
        line.step()
    return encode.detach()


@check(
    "customcontrast",
    beyond="the ranking of appearances by scale, the trained encoder and adapter, and pictures",
)
def customcontrast() -> Claims:
    """Contrasted views tell the subject, and not what surrounds it; weight 0 changes nothing."""
    call = pictures(1, "cross")
    assert call.site is not None
    subject = SubjectTokens(
        torch.randn(3, 6), (call.site.module,), (torch.randn(16, 6),), (torch.randn(16, 6),)
    )
    plain = run(call)
    (edit,) = CustomContrast((subject,), 0.0).edits()
    none = edit.after(EditContext(call, Prompt()), plain).out
    views = _Views()
    start = torch.randn(SEEN, KEPT) / SEEN**0.5
    known = views.of(torch.randint(SUBJECTS, (PROBED,)))[0]
    largest = torch.linalg.svd(known - known.mean(0), full_matrices=False).Vh[:KEPT].T
    before, compressed = _accuracies(start, views), _accuracies(largest, views)
    after = _accuracies(_contrasted(start, views), views)
    yield claim("lambda=0 gives the base model", "outputs equal", torch.equal(none, plain.out)
    ).equals(True, "bit for bit")  # fmt: skip
    yield claim(
        "subject-probe accuracy rises", "accuracy of a linear probe of the subject", after[0]
    ).above(before[0], "of the encoder before it was trained")
    yield claim(
        "subject-probe accuracy rises", "the same, against another encoder", after[0]
    ).above(compressed[0], "of as many principal components")
    yield claim(
        "nuisance-probe accuracy falls to chance",
        "accuracy of a linear probe of the surroundings", after[1],
    ).below(before[1], "of the encoder before it was trained")  # fmt: skip
    yield claim(
        "nuisance-probe accuracy falls to chance",
        "what the probe of the surroundings still finds", after[1],
    ).below(
        1 / SURROUNDINGS, "chance", plus=0.05,
        because="what is left of surroundings shrinks with training, and it ends",
    )  # fmt: skip
