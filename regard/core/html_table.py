"""Tables as static HTML for notebooks, without script or network; and as text for terminals."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_CELL = "padding:2px 8px;text-align:left;border:0;background:none"


def html_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Sequence[str] = ()
) -> str:
    """Write a table with its title and notes; no word of it is read as HTML.

    >>> "&lt;b&gt;" in html_table("heads", ["name"], [["<b>"]])
    True
    """
    top = "".join(_cell("th", x) for x in head)
    lines = "".join("<tr>" + "".join(_cell("td", x) for x in row) + "</tr>" for row in rows)
    said = "".join(f"<div>{plain_text(x)}</div>" for x in notes if x)
    return (
        f"<div><strong>{plain_text(title)}</strong>{said}"
        f'<table style="border-collapse:collapse"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def plain_text(text: object) -> str:
    """Write words so that none is read as HTML.

    >>> plain_text("<b>")
    '&lt;b&gt;'
    """
    return html.escape(str(text), quote=True)


def padded_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows as lines of text whose columns stand below each other.

    >>> padded_rows([("layer", "task"), ("mha", "1")])
    ['layer  task', 'mha    1']
    """
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(x.ljust(w) for x, w in zip(r, wide, strict=True)).rstrip() for r in rows]


def _cell(kind: str, content: object) -> str:
    return f'<{kind} style="{_CELL}">{plain_text(content)}</{kind}>'
