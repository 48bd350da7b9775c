"""Parts of pages of numbers: sections, tables, figures, and the document around them.

A page runs no script and makes no network request.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from importlib.resources import files

from regard.bench.drawing import Chart
from regard.views.colors import ROLE_COLORS


def document(title: str, body: Iterable[str]) -> str:
    """Write the HTML of a page from its parts; empty ones are left out.

    >>> "default-src 'none'" in document("numbers", [])
    True
    """
    style = (files("regard.bench") / "report.css").read_text(encoding="utf-8")
    style += "".join(f".c{i} {{ --c: {color}; }}\n" for i, color in enumerate(ROLE_COLORS))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    inside = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{plain(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{inside}\n"
        "</body>\n</html>\n"
    )


def header(title: str, facts: Sequence[str], names: Sequence[str]) -> str:
    """Write the head of a page: its title, what it is of, and the color of each name."""
    legend = "".join(
        f'<li><i class="s c{i % len(ROLE_COLORS)}"></i>{plain(name)}</li>'
        for i, name in enumerate(names)
    )
    said = " · ".join(plain(x) for x in facts if x)
    top = f'<h1>{plain(title)}</h1><p class="q">{said}</p>'
    return f'<header>{top}<ul class="legend">{legend}</ul></header>'


def figure(title: str, chart: Chart) -> str:
    """Write a chart with its title."""
    return f"<figure><figcaption>{plain(title)}</figcaption>{chart.svg()}</figure>"


def grid(items: Iterable[str]) -> str:
    """Lay figures out in a grid."""
    return f'<div class="grid">{"".join(items)}</div>'


def section(title: str, body: str) -> str:
    """Write a section."""
    return f"<section><h2>{plain(title)}</h2>{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; its cells are HTML."""
    top = "".join(f"<th>{plain(x)}</th>" for x in head)
    lines = "".join(f"<tr>{''.join(f'<td>{x}</td>' for x in row)}</tr>" for row in rows)
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="scroll">{made}</div>'


def plain(text: object) -> str:
    """Escape text for HTML.

    >>> plain("<b>")
    '&lt;b&gt;'
    """
    return html.escape(str(text), quote=True)
