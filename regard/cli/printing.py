"""Print tables that keep names whole, JSON, and progress bars."""

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
    """Build a console for standard output; 160 columns wide where it is piped."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_table(
    head: Sequence[str], lines: Sequence[Sequence[Any]], *, cut: Sequence[str] = ()
) -> None:
    """Print a table; columns in `cut` share the width left, and the first is dropped if it is 0.

    Without `cut` the last column wraps. All other columns are shown in full.
    """
    screen, cut = console(), list(cut)
    wide = [max([len(name), *(len(str(line[i])) for line in lines)]) for i, name in enumerate(head)]
    whole = sum(w for name, w in zip(head, wide, strict=True) if name not in cut)
    room = screen.width - whole - 3 * len(head)
    dropped = cut.pop(0) if len(cut) > 1 and room < 25 * len(cut) else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, longest in zip(head, wide, strict=True):
        width: int | None = longest
        if name in cut:
            width = max(8, min(longest, room // len(cut)))
        elif name == head[-1] and not cut:
            width = None
        if name != dropped:
            table.add_column(name, no_wrap=width is not None, overflow="ellipsis", width=width)
    kept = [i for i, name in enumerate(head) if name != dropped]
    for line in lines:
        table.add_row(*(escape(str(line[i])) for i in kept))
    screen.print(table)


def print_json(found: Any) -> None:
    """Print indented JSON."""
    print(json.dumps(found, indent=2, ensure_ascii=False))


def print_rows(
    head: Sequence[str], lines: Sequence[Sequence[Any]], as_json: bool, *, cut: Sequence[str] = ()
) -> None:
    """Print rows as a table, or as JSON with an object for each."""
    if as_json:
        print_json([dict(zip(head, line, strict=True)) for line in lines])
    else:
        print_table(head, lines, cut=cut)


@contextmanager
def bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each title reported as (title, done, total), with the time left."""
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
