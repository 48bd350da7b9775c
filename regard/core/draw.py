"""Draw the mask of a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from regard.core.errors import RegardError, ValueRangeError, fail, need
from regard.core.files import word_for
from regard.core.html_table import html_table, plain_text
from regard.core.picture_files import write_figure

if TYPE_CHECKING:
    from regard.core.rule import Rule

# Beyond this many positions a side the picture is drawn of tiles.
PIXELS = 512
# Positions a side that a notebook shows.
FEW = 24


def draw(rule: Rule, n: int, m: int, to: str | None, head: int, overwrite: bool = False) -> str:
    """Return the mask as text, and save it as a picture where `to` names a file."""
    if not (isinstance(n, int) and isinstance(m, int)) or min(n, m) < 1:
        fail(ValueRangeError, "n", (n, m), "at least one query and one key", "pass n=16")
    if to is None and max(n, m) > 128:
        fail(
            ValueRangeError,
            "n",
            max(n, m),
            "at most 128 for a drawing in text",
            "pass to='mask.png' for a picture of any size",
        )
    if not 0 <= head < max(rule.support.extent()[1], 1):
        fail(
            ValueRangeError,
            "head",
            head,
            f"0 to {rule.support.extent()[1] - 1}",
            "name a head that the support was made for",
        )
    rule.support.check(n + rule.offset, m)
    if to is None:
        allowed = rule.support.shift(rule.offset).matrix(n, m)[0, head]
        return "\n".join("".join("#" if x else "." for x in row) for row in allowed.tolist())
    return _picture(rule, n, m, to, head, overwrite)


def _picture(rule: Rule, n: int, m: int, to: str, head: int, overwrite: bool) -> str:
    need("matplotlib", "see", "draws pictures")
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    tile = max(1, -(-max(n, m) // PIXELS))
    state = rule.tiles(n, m, tile).state
    shown = state[0, min(head, state.shape[1] - 1)]
    side = torch.tensor(shown.shape, dtype=torch.float)
    width, height = (4.0 * side.flip(0) / side.max()).clamp(min=1.0).tolist()
    figure = Figure(figsize=(width + 0.8, height + 0.9))
    axes = figure.add_subplot()
    colors = ListedColormap(["#f3f1ec", "#8fb8c9", "#1f5f7a"])  # empty, partial, full
    axes.imshow(
        shown.numpy(), cmap=colors, vmin=0, vmax=2, extent=(0, m, n, 0), interpolation="none"
    )
    axes.set_xlabel("key position")
    axes.set_ylabel("query position")
    axes.set_title(str(rule.support), fontsize=9, wrap=True)
    origin = word_for(str(rule.support), n, m, shown.tolist())
    write_figure(figure, to, origin=origin, overwrite=overwrite, dpi=160, bbox_inches="tight")
    return to


def notebook_view(rule: Rule) -> str:
    """Return a rule as static HTML: its parts, and the mask of its first head over few tokens.

    >>> from regard.core import rule, support
    >>> notebook_view(rule.Rule(support.Window(2) & support.Causal())).count("<rect")
    47
    """
    rows = [(name, getattr(rule, name)) for name in ("support", "score", "weigh")]
    table = html_table("Rule", ["part", ""], rows)
    first = rule.offset
    places = torch.arange(FEW)
    try:
        rule.support.check(first + FEW, first + FEW)
        nothing = torch.zeros((), dtype=torch.long)
        allowed = rule.allows(nothing, nothing, places.view(-1, 1), first + places)
    except RegardError as refused:  # it was made for one length, or for tokens on a grid
        return f"{table}<div>{plain_text(str(refused).splitlines()[0])}</div>"
    side = 8
    squares = "".join(
        f'<rect x="{side * j}" y="{side * i}" width="{side}" height="{side}"/>'
        for i, j in allowed.expand(FEW, FEW).nonzero().tolist()
    )
    about = f"{FEW} queries down, keys {first} to {first + FEW - 1} across"
    return (
        f'<div style="display:flex;gap:1.5em;flex-wrap:wrap">{table}<figure style="margin:0">'
        f'<svg width="{side * FEW}" height="{side * FEW}" fill="#1f5f7a" role="img" '
        f'style="background:#f3f1ec" aria-label="mask: {about}">{squares}</svg>'
        f"<figcaption>{about}</figcaption></figure></div>"
    )
