"""How objects show themselves in a notebook: static HTML that needs no script and no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from regard.views.colors import ROLE_COLORS

if TYPE_CHECKING:
    from regard.views.seen import Seen

_CELL = "padding:2px 8px;text-align:left;border:0;background:none"


def table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Sequence[str] = ()
) -> str:
    """Write a table with its title and notes.

    >>> "&lt;b&gt;" in table("heads", ["name"], [["<b>"]])
    True
    """
    top = "".join(_cell("th", x) for x in head)
    lines = "".join("<tr>" + "".join(_cell("td", x) for x in row) + "</tr>" for row in rows)
    said = "".join(f"<div>{_plain(x)}</div>" for x in notes if x)
    return (
        f"<div><strong>{_plain(title)}</strong>{said}"
        f'<table style="border-collapse:collapse"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def heads_grid(seen: Seen) -> str:
    """Draw all heads, a row for each site: hue the first role, size the importance."""
    first, names = seen.roles.first(), seen.role_names
    sizes = np.nan_to_num(seen.importance())
    step, left = 18, 120
    wide = max((site.heads or 0 for site in seen.sites), default=0)
    marks = []
    for row, site in enumerate(seen.sites):
        y = 12 + step * row
        label = f"{seen.towers[site]} L{site.layer}".strip()
        marks.append(f'<text x="0" y="{y + 4}" font-size="11" fill="currentColor">'
                     f"{_plain(label)}</text>")  # fmt: skip
        for head in range(site.heads or 0):
            role = first.get((site, head))
            color = "none" if role is None else ROLE_COLORS[names.index(role) % len(ROLE_COLORS)]
            edge = "#888888" if role is None else color
            tip = seen.name_of(site, head) + (f": {seen.scores[role].title}" if role else "")
            marks.append(
                f'<circle cx="{left + step * head}" cy="{y}" r="{2.5 + 5 * sizes[row, head]:.1f}" '
                f'fill="{color}" stroke="{edge}"><title>{_plain(tip)}</title></circle>'
            )
    width, height = left + step * wide, 24 + step * len(seen.sites)
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="heads by role">{"".join(marks)}</svg>'
    )


def show_seen(seen: Seen) -> str:
    """Write what was seen: the grid, its colors, the findings."""
    first, names = set(seen.roles.first().values()), seen.role_names
    legend = " ".join(
        f'<span style="color:{ROLE_COLORS[i % len(ROLE_COLORS)]}">&#9679;</span> '
        f"{_plain(seen.scores[name].title)}"
        for i, name in enumerate(names) if name in first
    )  # fmt: skip
    said = "".join(f"<li>{_plain(x)}</li>" for x in seen.findings())
    heads = sum(site.heads or 0 for site in seen.sites)
    title = f"{seen.model.get('name', 'model')}: {heads} heads"
    return (
        f"<div><strong>{_plain(title)}</strong><div>{legend}</div>{heads_grid(seen)}"
        f"<ul>{said}</ul></div>"
    )


def _cell(kind: str, content: object) -> str:
    return f'<{kind} style="{_CELL}">{_plain(content)}</{kind}>'


def _plain(text: object) -> str:
    return html.escape(str(text), quote=True)


__all__ = ["heads_grid", "show_seen", "table"]
