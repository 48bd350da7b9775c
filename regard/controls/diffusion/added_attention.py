"""Attention to the tokens of a subject, added to the model's own outside of its softmax."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import PICTURE, TEXT, DiffusionControl
from regard.controls.diffusion.picture_tokens import PictureEdit
from regard.controls.edit import FORBIDDEN, AttentionEdit, add_bias
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.token_sets import AnyOf, TokenSet
from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.partial import wide
from regard.core.result import Result
from regard.core.rule import Rule
from regard.core.value import Value, value
from regard.run.runner import run


@value
class SubjectTokens(Value):
    """Tokens of a subject [x, c], and weights of keys and values [heads head_size, c] by site.

    `sites` names the modules that have weights, in the order of `to_k` and `to_v`: an adapter's.
    `anchor`, cos and sin [x, head_size], rotates the keys as the model rotates its own at these
    positions (`grid_rotation`, or the model's `pos_embed` of the picture's ids).

    >>> one = SubjectTokens(torch.ones(2, 3), ("a",), (torch.ones(8, 3),), (torch.ones(8, 3),))
    >>> one.keys_at("a", 2)[0].shape
    torch.Size([1, 2, 2, 4])
    """

    tokens: Tensor
    sites: tuple[str, ...]
    to_k: tuple[Tensor, ...]
    to_v: tuple[Tensor, ...]
    anchor: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        x = self.tokens
        size = x.shape[1] if isinstance(x, Tensor) and x.dim() == 2 else -1
        many = len(self.sites)
        good = size > 0 and len(self.to_k) == len(self.to_v) == many > 0
        if not good or any(w.dim() != 2 or w.shape[1] != size for w in (*self.to_k, *self.to_v)):
            fail(
                ShapeError, "subject", f"tokens {shape_of(x)} and {len(self.to_k)} weights for "
                f"{many} sites", "tokens [x, c] and weights [heads head_size, c] for each site",
                "pass the adapter's to_k_ip and to_v_ip of every site",
            )  # fmt: skip
        turned = self.anchor
        if turned is not None and any(t.dim() != 2 or len(t) != len(x) for t in turned):
            fail(
                ShapeError, "anchor", " and ".join(map(shape_of, turned)),
                f"cos and sin [{len(x)}, head_size]", "pass grid_rotation((rows, columns), size)",
            )  # fmt: skip

    def keys_at(self, site: str, heads: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values [1, heads, x, size] at a site; None if there are none."""
        if site not in self.sites:
            return None
        at = self.sites.index(site)
        k, v = (self.tokens @ w.to(self.tokens).T for w in (self.to_k[at], self.to_v[at]))
        k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1)[None] for x in (k, v))
        return k if self.anchor is None else rotated(k, *self.anchor), v


def grid_rotation(
    grid: tuple[int, int], size: int, *, start: tuple[int, int] = (0, 0), base: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Return cos and sin [rows columns, size]: half the channels rotate by row, half by column.

    Each pair of adjacent channels has its own frequency, as in Flux.

    >>> cos, sin = grid_rotation((2, 3), 8)
    >>> cos.shape, sin[0].tolist()
    (torch.Size([6, 8]), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    if size % 4:
        fail(ValueRangeError, "size", size, "a multiple of 4", "two axes, in pairs of channels")
    pace = base ** -(torch.arange(0, size // 2, 2, dtype=torch.float64) / (size // 2))
    down, across = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) + x for n, x in zip(grid, start, strict=True)),
        indexing="ij",
    )
    angles = torch.cat([x.flatten()[:, None] * pace for x in (down, across)], 1)
    angles = angles.repeat_interleave(2, 1)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels of x [b, h, n, d] by angles of cos and sin [n, d].

    >>> x = torch.randn(1, 1, 6, 8)
    >>> turned = rotated(x, *grid_rotation((2, 3), 8))
    >>> torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    True
    """
    one, two = x.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack((-two, one), -1).flatten(-2)
    return (x * cos + across * sin).to(x)


@value
class AddAttention(PictureEdit):
    """Add strength times attention to the tokens of subjects: out + s Attn(q, k_s, v_s).

    Picture tokens in `regions[i]` attend only to subject i; those in no region get nothing, those
    in several attend to several subjects in one softmax. Without regions all attend to all.

    >>> from regard.core.value import Value
    >>> AddAttention.point
    'output'
    """

    subjects: tuple[SubjectTokens, ...]
    regions: tuple[TokenSet, ...] = ()
    strength: Strength = 1.0
    point: ClassVar[str] = "output"
    law: ClassVar[str] = "linear in strength; nothing is added outside of all regions"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength))
        if not self.subjects or not all(isinstance(x, SubjectTokens) for x in self.subjects):
            fail(
                RuleError, "subjects", shape_of(self.subjects), "SubjectTokens", "pass one or more"
            )
        if self.regions and len(self.regions) != len(self.subjects):
            fail(
                RuleError, "regions", f"{len(self.regions)} for {len(self.subjects)} subjects",
                "one for each", "pass a Region for each subject",
            )  # fmt: skip

    def sets(self) -> tuple[TokenSet, ...]:
        """Return no sets: none of its keys are the model's."""
        return ()

    def changes(self, at: EditContext) -> Tensor:
        """Return tokens of the picture in any region."""
        made = super().changes(at)
        return made & AnyOf(self.regions).mask(at, "queries") if self.regions else made

    def after(self, at: EditContext, result: Result) -> Result:
        """Attend to the subjects, and add the result."""
        if is_neutral(self.strength, 0.0) or at.site is None:
            return result
        q = at.call.q
        found: list[Any] = [x.keys_at(at.site.module, at.call.h) for x in self.subjects]
        if any(x is None for x in found):
            return result
        k, v = (torch.cat([x[i].to(q) for x in found], 2) for i in (0, 1))
        if k.shape[3] != q.shape[3]:
            fail(
                ShapeError, "subject", f"keys of size {k.shape[3]}", f"size {q.shape[3]} at "
                f"{at.site.module}", "pass weights of the size of this site",
            )  # fmt: skip
        k, v = (x.expand(q.shape[0], -1, -1, -1) for x in (k, v))
        call = Call.of(q, k, v, Rule(), site=at.call.site, forward=at.call.forward)
        sizes = [x[0].shape[2] for x in found]
        if self.regions:
            masks = [region.mask(at, "queries") for region in self.regions]
            start = 0
            parts = []
            for mask, size in zip(masks, sizes, strict=True):
                own = torch.zeros(1, 1, k.shape[2], device=q.device)
                own[..., start : start + size] = 1.0
                parts.append((-FORBIDDEN * ~mask, own))
                start += size
            call = add_bias(call, parts)
        old, more = (x.to(wide(x.dtype)) for x in (result.out, run(call).out))
        more = at.factor(self.strength) * more * self.changes(at)[..., None]
        return result._replace(out=(old + more).to(result.out))


@register("ms_diffusion")
@method(
    "ms_diffusion",
    call="from regard.controls.diffusion import MSDiffusion\n"
    "regard.steer(pipeline, MSDiffusion(subjects, regions))",
)
@value
class MSDiffusion(DiffusionControl):
    """Generate several given subjects, each in its region, whose tokens also attend to its image.

    `subjects` hold the image tokens of each subject, and an adapter's key and value weights;
    nothing is added outside of all regions. 0 changes nothing. The adapter is trained elsewhere.
    (MS-Diffusion, Wang et al. 2024; one subject without a region is an IP-Adapter)

    >>> weights = ("a",), (torch.ones(8, 3),), (torch.ones(8, 3),)
    >>> MSDiffusion((SubjectTokens(torch.ones(2, 3), *weights),)).strength
    0.6
    """

    subjects: tuple[SubjectTokens, ...]
    regions: tuple[TokenSet, ...] = ()
    strength: Strength = 0.6
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = TEXT
    branch: ClassVar[str | None] = "conditional"
    high: ClassVar[float] = math.inf

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Add attention to the subjects."""
        return (AddAttention(tuple(self.subjects), tuple(self.regions), self.strength),)


@register("pinco")
@method(
    "pinco",
    call="from regard.controls.diffusion import Pinco, SubjectTokens, grid_rotation\n"
    "regard.steer(pipeline, Pinco((subject,)))",
)
@value
class Pinco(DiffusionControl):
    """Generate a background around a subject: the picture also attends to the subject's tokens.

    `subjects` are `SubjectTokens` on the grid of the picture, with an adapter's weights for sites
    of self or joint attention; their `anchor` rotates keys as the model rotates its own at the same
    positions. The output gets strength times that attention; 0 changes nothing. The adapter is
    trained elsewhere. (Pinco, Lu et al. 2024)

    >>> weights = ("a",), (torch.ones(8, 3),), (torch.ones(8, 3),)
    >>> Pinco((SubjectTokens(torch.ones(6, 3), *weights, grid_rotation((2, 3), 8)),)).strength
    1.0
    """

    subjects: tuple[SubjectTokens, ...]
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = PICTURE
    high: ClassVar[float] = math.inf

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Add attention to the subject."""
        return (AddAttention(tuple(self.subjects), strength=self.strength),)
