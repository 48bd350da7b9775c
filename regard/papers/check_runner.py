"""Run checks in parallel; what is done is on the disk, so a run that was broken off goes on."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from regard.bench.measuring import threads_each
from regard.core.errors import RuleError, ValueRangeError, fail
from regard.core.waiting import wait_for_any
from regard.papers.catalogue import row
from regard.papers.checks import checks, lacking
from regard.papers.confirming import confirm
from regard.papers.evidence_files import (
    FOLDER,
    SEEDS,
    Evidence,
    load,
    save,
)
from regard.papers.standing import standing
from regard.papers.trial import measure

# CPU seconds of a seed that was never measured.
UNKNOWN_COST = 5.0


@dataclass(frozen=True)
class Event:
    """Something that happened to the check of one row; `trace` says how it broke."""

    key: str
    what: Literal["fresh", "started", "confirmed", "done", "broke"]
    evidence: Evidence | None = None
    trace: str = ""


def choose(keys: Sequence[str], *, long: bool = False) -> list[str]:
    """Give the keys to check: those named, or with none named all that have a check.

    Long checks are left out unless asked for by `long`, or named when nothing else is.
    """
    made = checks()
    if not keys:
        return [key for key, one in made.items() if long or not one.long]
    for key in keys:
        if key in lacking():
            raise lacking()[key]
        if row(key).key not in made:
            fail(
                RuleError,
                "key",
                repr(key),
                "a row that has a check",
                "list them with `regard papers check --list`",
            )
        if made[key].long and not long:
            fail(
                RuleError,
                "key",
                f"{key!r}, whose check is long",
                "a quick check",
                "add --long",
            )
    return list(dict.fromkeys(keys))


def cheapest_first(keys: Sequence[str], folder: Path = FOLDER) -> list[str]:
    """Sort rows by what a seed cost when it was last measured; unknown ones come in between."""
    return sorted(keys, key=lambda key: _known_cost(key, folder))


def _known_cost(key: str, folder: Path) -> float:
    found = load(key, folder)
    return found.cpu_seconds if found is not None else UNKNOWN_COST


def run(
    keys: Sequence[str],
    *,
    jobs: int = 1,
    again: bool = False,
    folder: Path = FOLDER,
    seeds: Sequence[int] = SEEDS,
    budget: float = math.inf,
    confirm: bool = False,
) -> Generator[Event, None, None]:
    """Check `keys` and save what is measured as it comes; rows with fresh evidence are passed by.

    With one job the checks run in this process, where a debugger can follow. Closing the
    iterator, or Ctrl-C, ends the workers; what is done stays done. No check begins after `budget`
    seconds. Only the five seeds that count are saved; with others every row is measured.
    `confirm` runs one seed where only the code of the method has changed, and all where its
    numbers have changed too.
    """
    if jobs < 1:
        fail(ValueRangeError, "jobs", jobs, "at least 1", "leave it out for one for each core")
    if not seeds:
        fail(ValueRangeError, "seeds", "none", "at least one", "give --seeds 5")
    return _run(keys, jobs, again, folder, tuple(seeds), time.monotonic() + budget, confirm)


def _run(
    keys: Sequence[str],
    jobs: int,
    again: bool,
    folder: Path,
    seeds: tuple[int, ...],
    end: float,
    confirming: bool,
) -> Generator[Event, None, None]:
    due, counts = [], seeds == SEEDS
    for key in keys:
        found = standing(key, folder)
        if counts and found.fresh and not again:
            yield Event(key, "fresh", found.evidence)
        else:
            due.append(key)
    of = folder if confirming and counts and not again else None
    if jobs == 1:
        events = _here(due, seeds, of, end)
    else:
        events = _apart(due, min(jobs, len(due)), seeds, of, end)
    for event in events:
        if event.evidence is not None and counts:
            save(event.evidence, folder)
        yield event


def _here(
    keys: list[str], seeds: tuple[int, ...], of: Path | None, end: float
) -> Generator[Event, None, None]:
    for key in keys:
        if time.monotonic() >= end:
            return
        yield Event(key, "started")
        yield _outcome(key, seeds, of)


def _outcome(key: str, seeds: tuple[int, ...] = SEEDS, of: Path | None = None) -> Event:
    """Measure one row, or confirm its evidence in the folder `of` where that is enough."""
    try:
        confirmed = None if of is None else confirm(key, of)
        if confirmed is not None:
            return Event(key, "confirmed", confirmed)
        return Event(key, "done", measure(key, seeds))
    except Exception:  # a broken check is reported, and the others still run
        return Event(key, "broke", trace=traceback.format_exc())


def _apart(
    keys: list[str], jobs: int, seeds: tuple[int, ...], of: Path | None, end: float
) -> Generator[Event, None, None]:
    """Keep `jobs` processes busy; one that dies breaks its own check only, and is replaced."""
    start = multiprocessing.get_context("spawn")
    waiting, busy = list(reversed(keys)), dict[Connection, tuple[BaseProcess, str]]()
    idle: list[tuple[Connection, BaseProcess]] = []
    workers: list[BaseProcess] = []
    try:
        while waiting or busy:
            if time.monotonic() >= end:
                waiting.clear()
            while waiting and len(busy) < jobs:
                if idle:
                    line, worker = idle.pop()
                else:
                    line, far = start.Pipe()
                    worker = start.Process(target=_work, args=(far, jobs), daemon=True)
                    workers.append(worker)
                    worker.start()
                    far.close()  # so that a dead worker shows as the end of the line
                key = waiting.pop()
                busy[line] = (worker, key)
                line.send((key, seeds, of))
                yield Event(key, "started")
            for line in wait_for_any(list(busy)):
                worker, key = busy.pop(line)
                try:
                    event = line.recv()
                    idle.append((line, worker))
                except (EOFError, ConnectionError):
                    worker.join()
                    event = Event(
                        key, "broke", trace=f"its process died (exit code {worker.exitcode})"
                    )
                yield event
    finally:
        for worker in workers:
            if worker.pid is not None:  # it has begun
                worker.terminate()
                worker.join()


def _work(line: Connection, jobs: int) -> None:
    """Answer keys with events until the other end hangs up."""
    import torch

    # Ctrl-C reaches the whole group; the parent decides what happens to us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads_each(jobs))
    while True:
        try:
            key, seeds, of = line.recv()
        except EOFError:
            return
        line.send(_outcome(key, seeds, of))
