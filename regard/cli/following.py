"""Show the progress of checks."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from regard.papers.check_runner import Event
from regard.papers.pages import told
from regard.papers.standing import verdict_of

COLUMNS = (
    SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(),
)  # fmt: skip


def follow(events: Generator[Event, None, None], total: int, *, quiet: bool) -> list[Event]:
    """Show checks as they run, and return how each ended; Ctrl-C keeps finished ones."""
    ended: list[Event] = []
    running: list[str] = []
    console = Console(stderr=True, quiet=quiet, highlight=False)
    try:
        with (
            closing(events),
            Progress(
                *COLUMNS, console=console, transient=True, disable=not console.is_terminal
            ) as progress,
        ):
            bar = progress.add_task("checking", total=total)
            for event in events:
                if event.what == "started":
                    running.append(event.key)
                else:
                    ended.append(event)
                    if event.key in running:
                        running.remove(event.key)
                    progress.advance(bar)
                    progress.print(_said(event), markup=True)
                progress.update(bar, description=f"checking {', '.join(running)}")
    except KeyboardInterrupt:
        print(
            f"\nstopped: {len(ended)} of {total} done and kept; the same command goes on from here",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    return ended


def _said(event: Event) -> str:
    if event.evidence is None:
        return f"[red]broke[/] {event.key}: {escape(event.trace.strip())}"
    found = event.evidence
    notes = {
        "fresh": " (fresh evidence)",
        "confirmed": " (one seed again, the same numbers)",
    }
    note = notes.get(event.what, f" in {found.cost}")
    verdict, why = verdict_of(found)
    color = {"held": "green", "failed": "red"}.get(verdict, "yellow")
    said = f"[{color}]{verdict}[/] {event.key}{note}"
    if verdict != "held":
        said += escape(f": {why}")
    for one in found.failed:
        what, numbers, asked, _ = told(one)
        said += escape(f"\n  {what}: {numbers}; asked: {asked}")
    return said


def as_fields(event: Event) -> dict[str, Any]:
    """Return an event as JSON-serializable data."""
    found = event.evidence
    return {
        "key": event.key,
        "what": event.what,
        "trace": event.trace,
        "evidence": None if found is None else asdict(found),
    }
