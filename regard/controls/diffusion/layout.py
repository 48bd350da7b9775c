"""Layout controls: keep subjects in their regions, and words to their subjects."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import (
    PICTURE,
    TEXT,
    AtKinds,
    DiffusionControl,
    EditsSomewhere,
    steps_first,
)  # fmt: skip
from regard.controls.diffusion.picture_tokens import PictureTokens, Subject
from regard.controls.edit import FORBIDDEN, AttentionEdit, add_bias
from regard.controls.registry import register
from regard.controls.score_edits import AddBias, ScaleScores
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength, is_neutral, strength_of
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


@value
class KeepApart(AttentionEdit):
    """Keep queries of a group from attending to keys that belong only to other groups.

    `queries` and `keys` hold one set for each group. Keys in no group are open to all, and queries
    in no group may attend to anything; a query in two groups may attend to the keys of both. Odds
    of the others are multiplied by 1 - strength: 1 forbids, 0 changes nothing.

    >>> from regard.controls.image_tokens import Region
    >>> halves = (Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1)))
    >>> KeepApart(halves, halves).strength
    1.0
    """

    groups: tuple[TokenSet, ...]
    keys: tuple[TokenSet, ...]
    strength: Strength = 1.0
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "at strength 1, keys of other groups get weight 0; rows sum to one"

    def __post_init__(self) -> None:
        for name in ("groups", "keys"):
            object.__setattr__(self, name, tuple(token_set(x) for x in getattr(self, name)))
        if len(self.groups) < 1 or len(self.groups) != len(self.keys):
            fail(
                RuleError, "keys", f"{len(self.keys)} sets for {len(self.groups)} groups",
                "one for each", "name keys for each group",
            )  # fmt: skip
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))

    def sets(self) -> tuple[TokenSet, ...]:
        """Return the keys."""
        return self.keys

    def changes(self, at: EditContext) -> Tensor:
        """Return queries of any group."""
        made = self.groups[0].mask(at, "queries")
        for group in self.groups[1:]:
            made = made | group.mask(at, "queries")
        return at.limit & made

    def before(self, at: EditContext) -> Call:
        """Lower scores, for each combination of groups that queries belong to."""
        if is_neutral(self.strength, 0.0):
            return at.call
        call = at.call
        inside = torch.stack([x.mask(at, "queries").expand(call.b, 1, call.n) for x in self.groups])
        keys = torch.stack([spread(x.mask(at), call.b) for x in self.keys])
        number = torch.as_tensor(at.number(self.strength), device=at.device, dtype=torch.float32)
        return kept_apart(call, inside & at.limit, keys, number)


def kept_apart(call: Call, inside: Tensor, keys: Tensor, strength: Tensor) -> Call:
    """Multiply odds of keys that are only in other groups by 1 - strength, for queries of groups.

    `inside` bool [groups, b, h or 1, n] are the queries, `keys` bool [groups, b, h or 1, m].

    >>> q = torch.randn(1, 1, 2, 4)
    >>> groups = torch.eye(2).bool()[:, None, None]
    >>> apart = kept_apart(Call.of(q, q, q), groups, groups, torch.tensor(1.0))
    >>> len(apart.rule.score.steps)
    1
    """
    low = torch.where(strength < 1, torch.log1p(-strength.clamp(max=1 - 1e-7)), -FORBIDDEN)
    parts = []
    for way in inside.flatten(1).T.unique(dim=0):
        if not bool(way.any()):
            continue
        own = (inside == way[:, None, None, None]).all(0)
        others = keys.any(0) & ~keys[way].any(0)
        if bool(others.any()):
            parts.append((low * own, others))
    return add_bias(call, parts) if parts else call


def spread(mask: Tensor, b: int) -> Tensor:
    """Return a mask of keys for every row of the batch, [b, 1, m]."""
    return mask.any(1, keepdim=True).expand(b, 1, -1)


@value
class AtSomeLayers(EditsSomewhere):
    """Edits at every second of the sites where they act: from the second (`first` 1) or the first.

    Sites are counted in the order in which the model runs them.

    >>> AtSomeLayers(ScaleScores(0.5)).first
    1
    """

    edits: tuple[AttentionEdit, ...]
    first: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first not in (0, 1):
            fail(RuleError, "first", shape_of(self.first), "0 or 1", "pass 1")

    def here(self, at: EditContext) -> bool:
        """Return whether the edits act at this site."""
        kinds = [x for x in self.edits if isinstance(x, AtKinds)]
        if at.site is None or (kinds and not any(x.here(at) for x in kinds)):
            return False
        order = at.prompt.memory.setdefault(self, {})
        turn: int = order.setdefault(at.site.module, len(order))
        return turn % 2 == self.first


@register("bounded_attention")
@method(
    "bounded_attention",
    call="from regard.controls.diffusion import BoundedAttention, Subject\n"
    'regard.steer(pipeline, BoundedAttention([Subject("cat", left), Subject("dog", right)]))',
)
@value
class BoundedAttention(DiffusionControl):
    """Keep subjects apart: tokens in the region of one attend to no region or word of another.

    The background is unrestricted. Where text and picture share one attention, the words of a
    subject are kept to it as well. In overlapping regions, a token of two subjects may attend to
    both. `regions` sets how regions attend to each other: "forbidden", "alternate" (allowed in
    every second layer) or "free" (only words are kept apart). Odds of the others are multiplied by
    1 - strength. The guidance of the latent by boxes is `guide_latents` with `InsideRegions`.
    (Bounded Attention, Dahary et al. 2024)

    >>> from regard.controls.image_tokens import Region
    >>> left, right = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
    >>> BoundedAttention([Subject("cat", left), Subject("dog", right)]).regions
    'forbidden'
    """

    subjects: tuple[Subject, ...]
    strength: Strength = 1.0
    regions: str = "forbidden"
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    branch: ClassVar[str | None] = "conditional"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", Subject.many(self.subjects))
        if self.regions not in ("forbidden", "alternate", "free"):
            fail(
                RuleError, "regions", repr(self.regions), "'forbidden', 'alternate' or 'free'",
                "say how regions look at each other",
            )  # fmt: skip

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Keep regions and words apart."""
        places = tuple(x.region for x in self.subjects)
        words = tuple(x.words for x in self.subjects)
        both = tuple(x.region | x.words for x in self.subjects)
        cross = AtKinds((KeepApart(places, words, self.strength),), ("cross",))
        if self.regions == "free":
            return (cross, AtKinds((KeepApart(places, words, self.strength),), ("joint",)))
        alone = AtKinds((KeepApart(places, places, self.strength),), ("self",))
        joint = AtKinds((KeepApart(both, both, self.strength),), ("joint",))
        if self.regions == "forbidden":
            return (cross, alone, joint)
        return (cross, AtSomeLayers((alone, joint)))


@register("attention_modulation")
@method(
    "attention_modulation_t2i",
    call="from regard.controls.diffusion import AttentionModulation, Subject\n"
    'regard.steer(pipeline, AttentionModulation([Subject("cat", left), Subject("dog", right)]))',
)
@value
class AttentionModulation(DiffusionControl):
    """Sharpen the picture's attention early, keep words to their regions, and weigh words by step.

    In the first `layout_steps`, scores of the picture's attention are divided by `temperature`, and
    words of every subject get e^(strength gain) as much weight; in all steps, tokens in the region
    of a subject attend to no word of another. Strength 0 changes nothing. Regions are given.
    (Attention Modulation, Wu et al. 2024, rebuilt from its summary)

    >>> from regard.controls.image_tokens import Region
    >>> left, right = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
    >>> len(AttentionModulation([Subject("cat", left), Subject("dog", right)]).edits())
    4
    """

    subjects: tuple[Subject, ...]
    strength: Strength = 1.0
    temperature: float = 0.8
    gain: float = 0.5
    layout_steps: int = 10
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    branch: ClassVar[str | None] = "conditional"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", Subject.many(self.subjects))
        steps_first(self.layout_steps, "layout_steps")
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            fail(ValueRangeError, "temperature", shape_of(self.temperature), "above 0", "pass 0.8")
        if isinstance(self.strength, PerRow | PerStep):
            fail(
                ValueRangeError, "strength", str(self.strength), "one number, since steps have "
                "their own", "pass strength=1.0",
            )  # fmt: skip

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Sharpen, keep words to their regions, and weigh words."""
        assert isinstance(self.strength, float)
        s, steps = self.strength, self.layout_steps
        sharp = PerStep((self.temperature**-s,) * steps + (1.0,))
        loud = PerStep((s * self.gain,) * steps + (0.0,))
        words = tuple(x.words for x in self.subjects)
        every = words[0]
        for more in words[1:]:
            every = every | more
        places = tuple(x.region for x in self.subjects)
        apart = KeepApart(places, words, s)
        picture = PictureTokens()
        return (
            AtKinds((ScaleScores(sharp, picture),), PICTURE), AtKinds((apart,), TEXT),
            AtKinds((AddBias(every, loud, picture),), ("joint",)),
            AtKinds((AddBias(every, loud),), ("cross",)),
        )  # fmt: skip
