"""How the shell prints: tables that keep names whole, and JSON for tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def console() -> Console:
    """Build a console for standard output; what is piped gets room, as tools read it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_table(
    head: Sequence[str], lines: Sequence[Sequence[Any]], *, cut: Sequence[str] = ()
) -> None:
    """Print a table; columns in `cut` share the room left, and the first goes where there is none.

    Without `cut` the last column wraps. All other columns stay whole.
    """
    screen, cut = console(), list(cut)
    wide = [max([len(name), *(len(str(line[i])) for line in lines)]) for i, name in enumerate(head)]
    whole = sum(w for name, w in zip(head, wide, strict=True) if name not in cut)
    room = screen.width - whole - 3 * len(head)
    dropped = cut.pop(0) if len(cut) > 1 and room < 25 * len(cut) else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, width in zip(head, wide, strict=True):
        if name in cut:
            width = max(8, min(width, room // len(cut)))
        elif name == head[-1] and not cut:
            width = None
        if name != dropped:
            table.add_column(name, no_wrap=width is not None, overflow="ellipsis", width=width)
    kept = [i for i, name in enumerate(head) if name != dropped]
    for line in lines:
        table.add_row(*(escape(str(line[i])) for i in kept))
    screen.print(table)


def print_json(found: Any) -> None:
    """Print JSON as people read it."""
    print(json.dumps(found, indent=2, ensure_ascii=False))


@contextmanager
def bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each title that work tells of (title, done, total), with the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed}/{task.total} " + unit), TimeRemainingColumn(),
    )  # fmt: skip
    screen = Console(stderr=True)
    with Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
        tasks: dict[str, Any] = {}

        def tell(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=done, total=total)

        yield tell
