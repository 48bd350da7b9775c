"""A subject's keys turned as the picture's are found where they stand, wherever both are moved."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion import Pinco, SubjectTokens, grid_rotation
from regard.controls.diffusion.added_attention import rotated
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import GRID, TOKENS, pictures
from regard.run.runner import run

# As many channels as places: values name the place that they stand at.
SIZE, HEADS = TOKENS, 2


def _subject(site: str, content: Tensor, start: tuple[int, int] | None) -> SubjectTokens:
    """Tokens that say where they are in their values, and all the same in their keys."""
    tokens = torch.cat((torch.eye(TOKENS), torch.ones(TOKENS, 1)), 1).double()
    to_v = torch.cat((torch.eye(TOKENS), torch.zeros(TOKENS, 1)), 1).double().repeat(HEADS, 1)
    to_k = torch.zeros(HEADS * SIZE, TOKENS + 1, dtype=torch.float64)
    to_k[:, -1] = content.flatten()
    anchor = None if start is None else grid_rotation(GRID, SIZE, start=start)
    return SubjectTokens(tokens, (site,), (to_k,), (to_v,), anchor)


def _weights(call: Call, content: Tensor, start: tuple[int, int], anchored: bool) -> Tensor:
    """What each place of the picture gives each place of the subject, [1, h, n, n]."""
    assert call.site is not None
    q = content[None, :, None].expand(1, HEADS, TOKENS, SIZE)
    own = call.replace(q=rotated(q, *grid_rotation(GRID, SIZE, start=start)))
    made = Pinco((_subject(call.site.module, content, start if anchored else None),))
    (edit,) = made.edits()
    plain = run(own)
    return edit.after(EditContext(own, Prompt()), plain).out - plain.out


@check("pinco", beyond="the trained encoders and adapter, and pictures of foregrounds")
@torch.no_grad()
def pinco() -> Claims:
    """A subject's keys turned as the picture's are found where they stand."""
    call = pictures(1, "self")
    k, v = torch.randn(2, 1, HEADS, TOKENS, SIZE, dtype=torch.float64)
    content = 4 * torch.randn(HEADS, SIZE, dtype=torch.float64)
    call = call.replace(q=torch.randn_like(k), k=k, v=v)
    assert call.site is not None
    plain = run(call)
    none = Pinco((_subject(call.site.module, content, (0, 0)),), 0.0).edits()[0]
    same = none.after(EditContext(call, Prompt()), plain).out
    anchored = _weights(call, content, (0, 0), anchored=True)
    moved = _weights(call, content, (3, 5), anchored=True)
    blind = _weights(call, content, (0, 0), anchored=False)
    elsewhere = int((anchored.argmax(-1) != torch.arange(TOKENS)).sum())
    yield claim("lambda=0 returns the base", "outputs equal", torch.equal(same, plain.out)).equals(
        True, "bit for bit"
    )
    yield claim(
        "With content-independent keys", "queries that attend most to another place", elsewhere
    ).equals(0, "none")
    yield claim(
        "With content-independent keys", "change of weights where both grids move",
        gap(moved, anchored),
    ).within(1e-9, "the weights before", because=FLOAT64)  # fmt: skip
    yield claim(
        "without the anchor the argmax is position-blind",
        "without the anchor, distance of weights from the mean",
        gap(blind, torch.full_like(blind, 1 / TOKENS)),
    ).within(1e-9, "the same for every place", because=FLOAT64)  # fmt: skip
