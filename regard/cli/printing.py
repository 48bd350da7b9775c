"""How the shell prints: tables that keep names whole, and JSON for tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def console() -> Console:
    """Make a console for standard output; what is piped gets room, as tools read it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_table(
    head: Sequence[str], lines: Sequence[Sequence[Any]], *, cut: Sequence[str] = ()
) -> None:
    """Print a table: columns in `cut` may lose their end, the last one wraps, others stay whole."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        longest = max((len(str(line[i])) for line in lines), default=0)
        if name in cut:
            table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
        elif i == len(head) - 1:
            table.add_column(name)
        else:
            table.add_column(name, no_wrap=True, min_width=longest)
    for line in lines:
        table.add_row(*(escape(str(cell)) for cell in line))
    console().print(table)


def print_json(found: Any) -> None:
    """Print JSON as people read it."""
    print(json.dumps(found, indent=2, ensure_ascii=False))
