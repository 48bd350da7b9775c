"""Words that coincide are moved apart, and stay where they were; overlaps have their values."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.diffusion import SeparateWords
from regard.controls.diffusion.map_losses import TextMaps, overlap
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.picture_calls import GRID, LEFT, TOKENS

LATENTS, LAYERS = 16, 16
SETS = tuple(torch.eye(3, dtype=torch.bool)[i : i + 1] for i in (1, 2))


class _OverlappingWords:
    """One layer of cross-attention, and a latent at which the maps of two words nearly coincide."""

    def __init__(self) -> None:
        self.keys = 3 * torch.randn(3, 4)
        self.latent = 0.3 * torch.randn(LATENTS, TOKENS, 4)
        # Along the difference of both words the latent is nearly the same everywhere.
        way = self.keys[1] - self.keys[2]
        self.latent -= 0.9 * (self.latent @ way)[..., None] * way / way.square().sum()

    def maps(self, x: Tensor) -> TextMaps:
        return TextMaps((x @ self.keys.T / 2).softmax(-1), GRID, SETS)

    def stepped(self, loss: SeparateWords, steps: int = 10) -> Tensor:
        """Take steps of the latent."""
        x = self.latent
        for _ in range(steps):
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(loss.loss(self.maps(x)).sum(), x)
            x = (x - 5 * slope).detach()
        return x


class _Moved:
    """Overlap before and after updates with both losses, and retention with both and with one."""

    def __init__(self, toy: _OverlappingWords, apart: SeparateWords) -> None:
        kept = SeparateWords(apart.keep(toy.maps(toy.latent)), sharpen=5.0, ignore=())

        def overlaps(x: Tensor) -> float:
            return float(apart.loss(toy.maps(x)).mean())

        def lost(x: Tensor) -> float:
            return float(kept.loss(toy.maps(x)).mean()) - overlaps(x)

        both, alone = toy.stepped(kept), toy.stepped(apart)
        with torch.no_grad():
            self.measured = overlaps(toy.latent), overlaps(both), lost(both), lost(alone)


@check("a_star", beyond="pictures of Stable Diffusion")
def a_star() -> Claims:
    """Words that coincide are moved apart, and stay where they were."""
    apart = SeparateWords(sharpen=5.0, ignore=())
    # In one layer of ten, whose words hardly part, retention is no lower; so many are drawn.
    layers = [_Moved(_OverlappingWords(), apart) for _ in range(LAYERS)]
    first, overlapping, lost, lost_alone = (
        torch.tensor([x.measured for x in layers]).mean(0).tolist()
    )
    same = LEFT[None].float()
    yield claim("lower their overlap by", f"mean overlap of {LAYERS * LATENTS} after 10 updates",
                overlapping).below(
        first, "that before", times=0.5, because=CATALOGUE
    )  # fmt: skip
    yield claim("lower their overlap by", "mean retention term", lost).below(
        lost_alone, "that without L_ret"
    )
    yield claim(
        "Identical maps give L_seg", "of identical maps", float(overlap(same, same))
    ).equals(0.5, "0.5")
    yield claim("Identical maps give L_seg", "of disjoint maps",
                float(overlap(same, 1 - same))).equals(0.0, "0")  # fmt: skip
    yield claim("A=B binary gives", "1 - overlap", 1 - float(overlap(same, same))).equals(
        0.5, "0.5"
    )
