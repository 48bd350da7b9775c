"""How objects show themselves in a notebook: static HTML that needs no script and no network."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING
from zlib import compress, crc32

import numpy as np

from regard.core.html_table import html_table, plain_text
from regard.probes.scores import name_of_head
from regard.views.colors import difference, levels, ramp, role_color

if TYPE_CHECKING:
    from regard.views.one_head import SeenHead
    from regard.views.run_file import Run
    from regard.views.seen import Seen

# Texts of so many tokens are shown as words with lines between them, as the page does.
SENTENCE = 32


def heads_grid(seen: Seen) -> str:
    """Draw all heads, a row for each site: hue the first role, size the importance."""
    first = seen.roles.first()
    sizes = np.nan_to_num(seen.importance())
    step, left = 18, 120
    wide = max((site.heads or 0 for site in seen.sites), default=0)
    marks = []
    for row, site in enumerate(seen.sites):
        y = 12 + step * row
        label = f"{seen.towers[site]} L{site.layer}".strip()
        marks.append(f'<text x="0" y="{y + 4}" font-size="11" fill="currentColor">'
                     f"{plain_text(label)}</text>")  # fmt: skip
        for head in range(site.heads or 0):
            role = first.get((site, head))
            color = "none" if role is None else role_color(role)
            edge = "#888888" if role is None else color
            tip = seen.name_of(site, head) + (f": {seen.scores[role].title}" if role else "")
            marks.append(
                f'<circle cx="{left + step * head}" cy="{y}" r="{2.5 + 5 * sizes[row, head]:.1f}" '
                f'fill="{color}" stroke="{edge}"><title>{plain_text(tip)}</title></circle>'
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
        f'<span style="color:{role_color(name)}">&#9679;</span> '
        f"{plain_text(seen.scores[name].title)}"
        for name in names if name in first
    )  # fmt: skip
    said = "".join(f"<li>{plain_text(x)}</li>" for x in seen.findings())
    heads = sum(site.heads or 0 for site in seen.sites)
    title = f"{seen.model.get('name', 'model')}: {heads} heads"
    cards = "".join(
        f'<figure style="display:inline-block;margin:0 1em 0 0">{map_image(head, 120)}'
        f"<figcaption>{plain_text(head.name)} {plain_text(head.role or 'no role')}</figcaption>"
        "</figure>"
        for head in seen.most_telling()
    )
    return (
        f"<div><strong>{plain_text(title)}</strong><div>{legend}</div>{heads_grid(seen)}"
        f"<ul>{said}</ul>{cards}</div>"
    )


def show_head(head: SeenHead) -> str:
    """Write one head: its scores beside its map, or of a sentence the lines between its words."""
    rows = [[name, f"{value:.3g}"] for name, value in head.scores.items()]
    exact = head.deep is not None and head.deep.facts["exact"] and head.words
    drawn = words_and_lines(head) if exact and len(head.words) <= SENTENCE else map_image(head, 280)
    said = html_table(f"{head.name}: {head.role or 'no role'}", ["score", ""], rows)
    return f'<div style="display:flex;gap:1.5em;flex-wrap:wrap">{said}<div>{drawn}</div></div>'


def map_image(head: SeenHead, size: int) -> str:
    """Draw the map of a head as an image of its own: queries down, keys across."""
    colors = head.picture()
    if colors is None:
        return ""
    return _image(colors, size, plain_text(head.name))


def words_and_lines(head: SeenHead) -> str:
    """Draw a head over a sentence: its words twice, a line from each query to each key."""
    weights = head.weights()
    step, left, right, wide = 18, 150, 270, 420
    marks = []
    for i, row in enumerate(weights.tolist()):
        for j, weight in enumerate(row):
            if weight >= 0.02:
                marks.append(
                    f'<line x1="{left}" y1="{step * (i + 0.6):.1f}" x2="{right}" '
                    f'y2="{step * (j + 0.6):.1f}" stroke="#0072B2" '
                    f'stroke-opacity="{min(1.0, weight):.2f}" stroke-width="2"/>'
                )
    for at, anchor in ((left - 6, "end"), (right + 6, "start")):
        marks += [
            f'<text x="{at}" y="{step * (x + 0.6) + 4:.1f}" font-size="12" fill="currentColor" '
            f'text-anchor="{anchor}">{plain_text(word.strip() or "␣")}</text>'
            for x, word in enumerate(head.words)
        ]
    high = step * (max(weights.shape) + 1)
    return (
        f'<svg width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="{plain_text(head.name)}: queries at the left, keys at the right">'
        f"{''.join(marks)}</svg>"
    )


def show_changes(run: Run, count: int = 3) -> str:
    """Draw the heads that changed most: their maps before, after, and the difference."""
    from regard.views.compare import most_changed, weights_of

    if "other/thumbs" not in run.arrays or "thumbs" not in run.arrays:
        return ""
    shown = []
    for s, h in most_changed(run.arrays["jsd"], count):
        site, both = run.manifest["sites"][s], (run.arrays["thumbs"], run.arrays["other/thumbs"])
        tile = site.get("tile") or 1
        high, wide = (max(1, -(-int(site[x] or tile) // tile)) for x in ("queries", "keys"))
        a, b = (x[s, h, :high, :wide] for x in both)
        drawn = levels("adaptive", np.stack([a, b]))
        change = weights_of(b) - weights_of(a)
        change /= max(float(np.abs(change).max()), 1e-9)
        name = plain_text(name_of_head(site, h))
        pictures = [(ramp(drawn[a]), "A"), (ramp(drawn[b]), "B"), (difference(change), "B - A")]
        figures = "".join(
            f'<figure style="display:inline-block;margin:0 1em 0 0">{_image(x, 140, name)}'
            f"<figcaption>{what}</figcaption></figure>" for x, what in pictures
        )  # fmt: skip
        shown.append(f"<div><strong>{name}</strong></div>{figures}")
    return f"<div>{''.join(shown)}</div>"


def _image(colors: np.ndarray, size: int, name: str) -> str:
    data = base64.b64encode(png(colors)).decode()
    return (
        f'<img src="data:image/png;base64,{data}" width="{size}" height="{size}" '
        f'style="image-rendering:pixelated" alt="map of {name}: queries down, keys across">'
    )


def png(colors: np.ndarray) -> bytes:
    """Write colors uint8 [rows, columns, 3] as a PNG file.

    >>> png(np.zeros((2, 3, 3), np.uint8))[1:4]
    b'PNG'
    """
    rows, columns = colors.shape[:2]
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), colors.reshape(rows, -1)], 1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    packed = compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*x) for x in ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    )
