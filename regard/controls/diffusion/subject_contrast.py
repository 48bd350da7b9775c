"""A subject told from what surrounds it: an encoder of its tokens, and losses that contrast views.

Two views of one subject differ in pose and background; two subjects in the same place share these.
What pulls views together and pushes subjects apart therefore keeps the subject alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from regard.controls.diffusion.added_attention import AddAttention, SubjectTokens
from regard.controls.diffusion.diffusion_control import TEXT, DiffusionControl
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value
from regard.layers.attention import Attention


class SubjectEncoder(nn.Module):
    """Turn features of pictures at several scales, and the subject's word, into subject tokens.

    For each scale `tokens` learned queries attend to its features, q + Attn(q, features); all of
    them and the word then attend to one another. Features are [b, n, features] for each scale, the
    text [b, t, dim].

    >>> encoder = SubjectEncoder(16, features=24, scales=2, tokens=3)
    >>> encoder([torch.randn(1, 9, 24), torch.randn(1, 4, 24)], torch.randn(1, 2, 16)).shape
    torch.Size([1, 6, 16])
    """

    def __init__(
        self, dim: int, features: int, *, scales: int = 3, tokens: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(scales, tokens, dim) / math.sqrt(dim))
        self.look = nn.ModuleList(
            Attention(dim, heads, context_dim=features) for _ in range(scales)
        )
        self.join = Attention(dim, heads)

    def forward(self, features: Sequence[Tensor], text: Tensor) -> Tensor:
        """Return tokens [b, scales tokens, dim]."""
        scales, _, dim = self.queries.shape
        if len(features) != scales or any(x.dim() != 3 for x in features):
            fail(
                ShapeError, "features", f"{len(features)} of {[shape_of(x) for x in features]}",
                f"{scales} tensors [b, n, features]", "pass one for each scale",
            )  # fmt: skip
        if text.dim() != 3 or text.shape[2] != dim:
            fail(ShapeError, "text", shape_of(text), f"[b, t, {dim}]", "pass embeddings of words")
        found = []
        for query, look, x in zip(self.queries, self.look, features, strict=True):
            q = query.expand(x.shape[0], -1, -1)
            found.append(q + look(q, x))
        seen = torch.cat(found, 1)
        joined = torch.cat((seen, text), 1)
        return (joined + self.join(joined))[:, : seen.shape[1]]


def subject_contrast(x: Tensor, subjects: Tensor, temperature: float = 0.1) -> Tensor:
    """Return how well views x [n, d] tell their `subjects` [n] apart: InfoNCE, a scalar.

    Minus the mean log share, among all others, that a view gives to the other views of its own
    subject: exp(cos / temperature) over its sum.

    >>> x = torch.eye(2).repeat(2, 1)  # two views of each of two subjects
    >>> a, b = (subject_contrast(x, torch.tensor(y)) for y in ([0, 1, 0, 1], [0, 0, 1, 1]))
    >>> bool(a < 0.01 < b)
    True
    """
    same = _views_of_one(x, subjects)
    if not temperature > 0:
        fail(ValueRangeError, "temperature", temperature, "a number above 0", "pass 0.1")
    unit = normalize(x, dim=-1)
    score = (unit @ unit.T / temperature).masked_fill(_itself(x), -torch.inf)
    share = score.log_softmax(-1).masked_fill(~same, 0.0)
    return -(share.sum(-1) / same.sum(-1).clamp(min=1))[same.any(-1)].mean()


def appearance_ranking(scales: Sequence[Tensor], subjects: Tensor, margin: float = 0.1) -> Tensor:
    """Return by how much views x [n, d] of other subjects are nearer than those of one's own.

    At each scale, the mean over triples of max(0, margin + cos with another subject's view - cos
    with one's own); 0 where every view of one's own is nearer by `margin`.

    >>> x = torch.eye(2).repeat(2, 1)
    >>> float(appearance_ranking([x, x], torch.tensor([0, 1, 0, 1])))
    0.0
    """
    if not scales:
        fail(ShapeError, "scales", "no tensor", "one [n, d] for each scale", "pass [x]")
    total = scales[0].new_zeros(())
    for x in scales:
        same = _views_of_one(x, subjects)
        unit = normalize(x, dim=-1)
        cos = unit @ unit.T
        other = ~same & ~_itself(x)
        short = (margin + cos[:, None] - cos[:, :, None]).clamp(min=0)  # [n, own, other]
        triples = same[:, :, None] & other[:, None]
        total = total + short[triples].sum() / triples.sum().clamp(min=1)
    return total / len(scales)


def _itself(x: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=torch.bool, device=x.device)


def _views_of_one(x: Tensor, subjects: Tensor) -> Tensor:
    """Return which pairs of views [n, n] are of one subject, and not the same view."""
    if x.dim() != 2 or subjects.shape != x.shape[:1]:
        fail(
            ShapeError, "subjects", f"{shape_of(subjects)} for views {shape_of(x)}",
            "views [n, d] and a number for each, [n]", "say whose view each row is",
        )  # fmt: skip
    same = (subjects[:, None] == subjects) & ~_itself(x)
    if not bool(same.any()):
        fail(
            ValueRangeError, "subjects", "one view of each", "two views of one subject at least",
            "draw several views of a subject in a batch",
        )  # fmt: skip
    return same


@register("customcontrast")
@method(
    "customcontrast",
    call="from regard.controls.diffusion import CustomContrast\n"
    "regard.steer(pipeline, CustomContrast(subjects))",
)
@value
class CustomContrast(DiffusionControl):
    """Paint a subject by its tokens: the text's attention, and `strength` times that to these.

    `subjects` hold tokens of a `SubjectEncoder` that was trained by `subject_contrast` and
    `appearance_ranking`, so that they say what the subject is, not its pose or background, and
    weights of keys and values by site. 0 changes nothing. The paper leaves much of it open; this is
    a reading of it. (CustomContrast, Chen et al. 2024)

    >>> weights = ("a",), (torch.ones(8, 3),), (torch.ones(8, 3),)
    >>> CustomContrast((SubjectTokens(torch.ones(2, 3), *weights),)).edits()[0].point
    'output'
    """

    subjects: tuple[SubjectTokens, ...]
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = TEXT
    branch: ClassVar[str | None] = "conditional"
    high: ClassVar[float] = math.inf

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Add attention to the subject."""
        return (AddAttention(tuple(self.subjects), strength=self.strength),)
