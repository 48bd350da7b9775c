"""Policies at budgets as one page: a table, and charts of quality against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regard.bench.drawing import Axis, Chart
from regard.bench.page_parts import document, figure, grid, header, plain, section, table
from regard.bench.records import BenchError
from regard.bench.shrunk_cells import HEADINGS, Cell, frontier, level, recommended, rows
from regard.bench.statistics import Count
from regard.core.files import write_bytes
from regard.views.colors import ROLE_COLORS
from regard.views.overwrite import may_replace, sealed_page

TITLES = {**HEADINGS, "kl": "KL to the full model, nats"}
NOTES = (
    "Counts stand with the 95% interval of their share. KL is the mean divergence of next tokens "
    "from those of the full model, over the texts that bits per byte are measured on. Tokens a "
    "second are the median, and the least and the most, of five rounds. On a CPU the peak of "
    "memory is the size of the largest tensor."
)


def shrunk_page(
    cells: Sequence[Cell], measures: Sequence[str], title: str, facts: Sequence[str] = ()
) -> str:
    """Write the page of measured cells as HTML.

    >>> "needles found" in shrunk_page([Cell("full", None)], ["needle"], "a model")
    True
    """
    names = list(dict.fromkeys(c.policy for c in cells if c.policy != "full"))
    head, lines = rows(cells, measures)
    said = recommended(cells)
    charts = [figure(TITLES[m], _chart(cells, names, m)) for m in (*measures, "kl")
              if any(level(c, m) is not None for c in cells)]  # fmt: skip
    legend = "A dotted line is the full model; a grey one joins the cells that none other beats."
    # Beside ten columns of numbers a sentence would be cut off.
    numbers = table(head[:-1], [[plain(x) for x in line[:-1]] for line in lines])
    advice = "".join(
        f"<li><b>{plain(' at '.join(x for x in line[:2] if x))}</b>: {plain(line[-1])}</li>"
        for line in lines
    )
    parts = [
        header(title, facts, names),
        section("In short", f"<p>{plain(said)}</p>") if said else "",
        section("Policies and budgets", f'<div class="numbers">{numbers}</div><ul>{advice}</ul>'
                f"<p class=q>{plain(NOTES)}</p>"),
        section("What is kept against what it costs", f"<p class=q>{legend}</p>" + grid(charts))
        if charts else "",
    ]  # fmt: skip
    return document(title, parts)


def write_shrunk_page(
    cells: Sequence[Cell], measures: Sequence[str], title: str, facts: Sequence[str],
    path: str | Path, origin: str, *, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write the page to a file; a page of the same `origin` that is there is replaced, no other."""
    body = sealed_page(shrunk_page(cells, measures, title, facts), origin)
    there = may_replace(origin, BenchError)
    return write_bytes(path, body, may_replace=True if overwrite else there, error=BenchError)


def _chart(cells: Sequence[Cell], names: Sequence[str], measure: str) -> Chart:
    shown = [c for c in cells if level(c, measure) is not None and c.bytes]
    counted = measure in ("needle", "recall")
    values = [level(c, measure) or 0.0 for c in shown]
    title = TITLES[measure]
    # A little room on every side, so that no point lies on an edge.
    room = 0.06 * (max(values) - min(values)) if values else 0.0
    spread = [min(values) - room, max(values) + room] if values else []
    y = Axis(0, 1, title, share=True) if counted else Axis.around(spread, title)
    kept = [100 * (c.bytes or 1.0) for c in shown]
    x = Axis.around([x * side for x in kept for side in (0.85, 1.1)], "% of the bytes", log=True)
    chart = Chart(x, y, width=420, height=260, title=title)
    for cell in shown:
        if cell.policy == "full":
            chart.across(level(cell, measure) or 0.0, "the full model")
    edge = [(100 * (c.bytes or 1.0), level(c, measure) or 0.0) for c in frontier(shown, measure)]
    chart.steps(edge, "none other keeps less and does better")
    for cell in shown:
        if cell.policy == "full":
            continue
        color = names.index(cell.policy) % len(ROLE_COLORS)
        at, found = 100 * (cell.bytes or 1.0), getattr(cell, measure)
        if isinstance(found, Count):
            chart.interval(at, *found.interval, color)
        chart.point(at, level(cell, measure) or 0.0, color, f"{cell.label}: {found}")
    return chart
