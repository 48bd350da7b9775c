"""VHR: find heads whose output depends on the image, and scale up their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.base import Control, checked
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.tensor_edits import ScaleTensor
from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.method import method
from regard.core.result import Result
from regard.core.value import value
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Stage


class _LastOut(Stage):
    """Record the output of every head at the last query, [h, e], averaged over the batch."""

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.found: dict[Site, Tensor] = {}

    def after(self, call: Call, result: Result) -> Result:
        self.found[call.site] = result.out[:, :, -1].float()
        return result


class _Divide(_LastOut):
    """Score heads against a run without the image, and scale up the chosen ones at once."""

    def __init__(self, without: dict[Site, Tensor], strength: float, where: Any) -> None:
        super().__init__(where)
        self.without, self.strength = without, strength
        self.divergence: dict[Site, Tensor] = {}
        self.chosen: dict[Site, Tensor] = {}

    def after(self, call: Call, result: Result) -> Result:
        if call.site not in self.without:  # in an encoder that reads only the image
            return result
        new, old = result.out[:, :, -1].float(), self.without[call.site]
        apart = (new - old).norm(dim=-1).mean(0)  # [h]
        self.divergence[call.site] = apart
        # A head with a larger output without the image does not depend on the image.
        louder = old.norm(dim=-1).mean(0) > new.norm(dim=-1).mean(0)
        odd = (apart > apart.mean() + apart.std(correction=0)) & louder
        score = torch.where(odd, 0.0, apart)
        chosen = (score >= score.median()) & (score > 0)
        self.chosen[call.site] = chosen
        factor = torch.where(chosen, self.strength, 1.0).to(result.out)
        return result._replace(out=result.out * factor[:, None, None])


@dataclass(frozen=True)
class VisionHeads:
    """Vision heads as (layer, head), and how much each head's output changes, by layer [h]."""

    heads: tuple[tuple[int, int], ...]
    divergence: dict[int, Tensor] = field(repr=False)

    @property
    def of_token(self) -> float:
        """Sum the divergence of the chosen heads over layers: low where language decides."""
        return float(sum(self.divergence[layer][head] for layer, head in self.heads))


@torch.no_grad()
def vision_heads(
    model: Any, inputs: Mapping[str, Any], without: Mapping[str, Any], *, where: Any = None,
    strength: float = 2.0,
) -> VisionHeads:  # fmt: skip
    """Find heads whose output at the last token depends on the image: two runs.

    `without` are the inputs with the same text and no image. A layer is scored with the chosen
    heads of earlier layers already scaled. At most half of the heads of a layer are chosen.
    """
    blind = _LastOut(where)
    with attach(model, blind, check=False):
        model(**without)
    seeing = _Divide(blind.found, strength, where)
    with attach(model, seeing, check=False):
        model(**inputs)
    pairs = []
    for site, chosen in seeing.chosen.items():
        if site.layer is None:
            fail(CapabilityError, "model", site.module, "sites in numbered layers", "name layers")
        pairs += [(site.layer, h) for h in chosen.nonzero().flatten().tolist()]
    return VisionHeads(
        tuple(pairs),
        {site.layer: x for site, x in seeing.divergence.items() if site.layer is not None},
    )


@register("vision_heads", "vhr")
@method(
    "vhd_vhr",
    call="from regard.controls.vision_heads import vision_heads\n"
    "found = vision_heads(model, inputs, without_image)\n"
    'regard.steer(model, "vision_heads", where={"heads": found.heads}, strength=2.0)',
)
@value
class VisionHeadReinforcement(Control):
    """Multiply the outputs of the heads in `where` by `strength`; 1 changes nothing.

    `vision_heads` finds these heads. (VHR, He et al. 2024)

    >>> VisionHeadReinforcement(where={"heads": [(2, 1)]}).edits()[0]
    ScaleTensor(strength=2.0)
    """

    strength: Strength = 2.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Scale the outputs."""
        return (ScaleTensor("out", self.strength),)
