"""One view is ordinary attention, identical views stay so, statistics and distances are exact."""

from __future__ import annotations

import torch

from regard.controls.context import EditContext
from regard.controls.diffusion import MatchStatistics, StyleAligned, sliced_wasserstein
from regard.controls.prompt import Prompt
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import alike, pictures, with_edits


@check("style_nerf2nerf", beyond="depth-conditioned views, and the scene fitted to them")
@torch.no_grad()
def style_nerf2nerf() -> Claims:
    """One view is ordinary attention, identical views stay so, statistics are exact."""
    one, same, call = pictures(1), alike(pictures(3)), pictures(3)
    edits = StyleAligned().edits()
    alone = gap(with_edits(one, edits)[0], with_edits(one, ())[0])
    views = with_edits(same, edits)[0]
    made = MatchStatistics().before(EditContext(call.replace(q=3 * call.q + 1), Prompt()))
    q = made.q
    far = max(gap(q.mean(2), q[:1].mean(2).expand(3, -1, -1)),
              gap(q.std(2), q[:1].std(2).expand(3, -1, -1)))  # fmt: skip
    x = torch.randn(40, 6)
    yield claim("V=1 equals ordinary attention", "difference", alone).within(
        1e-5, "ordinary attention", because="statistics are matched in float32"
    )
    yield claim("views with identical inputs", "largest difference of two views",
                gap(views, views[:1].expand(3, -1, -1, -1))).within(
        1e-12, "each other", because=FLOAT64
    )  # fmt: skip
    yield claim("after AdaIN the mean/std", "largest difference", far).within(
        1e-5, "the reference's", because=CATALOGUE
    )
    yield claim("SWD is 0 for permuted", "of the same set in another order",
                float(sliced_wasserstein(x, x[torch.randperm(40)]))).equals(0.0, "0")  # fmt: skip
    yield claim("SWD is 0 for permuted", "of two sets",
                float(sliced_wasserstein(x, torch.randn(40, 6)))).above(0, "0")  # fmt: skip
