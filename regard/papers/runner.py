"""Run checks in parallel; what is done is on the disk, so a run that was broken off goes on."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from regard.bench.measuring import threads_each
from regard.core.errors import RuleError, ValueRangeError, fail
from regard.papers.catalogue import row
from regard.papers.checks import checks
from regard.papers.evidence_files import FOLDER, Evidence, commit, machine, save, versions
from regard.papers.standing import hashes, standing


@dataclass(frozen=True)
class Event:
    """Something that happened to the check of one row; `trace` says how it broke."""

    key: str
    what: Literal["fresh", "started", "done", "broke"]
    evidence: Evidence | None = None
    trace: str = ""


def measure(key: str, seed: int = 0) -> Evidence:
    """Run the check of one row here and now, and give what it measured.

    Evidence that is kept is of seed 0; another seed shows whether the claim was one of luck.
    """
    import torch

    made = checks()[key]
    torch.manual_seed(seed)
    begun, used = time.perf_counter(), cpu_seconds()
    found = made.function()
    seconds, used = time.perf_counter() - begun, cpu_seconds() - used
    check_hash, method_hash = hashes(key)
    return Evidence(
        key=key,
        claim=found.claim,
        held=bool(found.held),
        numbers=dict(found.numbers),
        matches=found.matches,
        left_out=found.left_out,
        long=made.long,
        seconds=round(seconds, 3),
        cpu_seconds=round(used, 3),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
        versions=versions(),
        commit=commit(),
        check_hash=check_hash,
        method_hash=method_hash,
    )


def cpu_seconds() -> float:
    """Seconds that processors spent on this process and on children that have ended.

    Every thread counts, and waiting does not: on a busy machine it is what it is on a quiet one.
    """
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def choose(keys: Sequence[str], *, long: bool = False) -> list[str]:
    """Give the keys to check: those named, or with none named all that have a check.

    Long checks are left out unless asked for by `long`, or named when nothing else is.
    """
    made = checks()
    if not keys:
        return [key for key, one in made.items() if long or not one.long]
    for key in keys:
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


def run(
    keys: Sequence[str], *, jobs: int = 1, again: bool = False, folder: Path = FOLDER
) -> Generator[Event, None, None]:
    """Check `keys` and save what is measured as it comes; rows with fresh evidence are passed by.

    With one job the checks run in this process, where a debugger can follow. Closing the
    iterator, or Ctrl-C, ends the workers; what is done stays done.
    """
    if jobs < 1:
        fail(ValueRangeError, "jobs", jobs, "at least 1", "leave it out for one for each core")
    return _run(keys, jobs, again, folder)


def _run(keys: Sequence[str], jobs: int, again: bool, folder: Path) -> Generator[Event, None, None]:
    due = []
    for key in keys:
        found = standing(key, folder)
        if found.verdict in ("held", "failed") and not again:
            yield Event(key, "fresh", found.evidence)
        else:
            due.append(key)
    events = _here(due) if jobs == 1 else _apart(due, min(jobs, len(due)))
    for event in events:
        if event.evidence is not None:
            save(event.evidence, folder)
        yield event


def _here(keys: list[str]) -> Generator[Event, None, None]:
    for key in keys:
        yield Event(key, "started")
        yield _outcome(key)


def _outcome(key: str) -> Event:
    try:
        return Event(key, "done", measure(key))
    except Exception:  # a broken check is reported, and the others still run
        return Event(key, "broke", trace=traceback.format_exc())


def _apart(keys: list[str], jobs: int) -> Generator[Event, None, None]:
    """Keep `jobs` processes busy; one that dies breaks its own check only, and is replaced."""
    start = multiprocessing.get_context("spawn")
    waiting, busy = list(reversed(keys)), dict[Connection, tuple[BaseProcess, str]]()
    idle: list[tuple[Connection, BaseProcess]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                if idle:
                    line, worker = idle.pop()
                else:
                    line, far = start.Pipe()
                    worker = start.Process(target=_work, args=(far, jobs), daemon=True)
                    worker.start()
                    far.close()  # so that a dead worker shows as the end of the line
                key = waiting.pop()
                busy[line] = (worker, key)
                line.send(key)
                yield Event(key, "started")
            for line in wait(list(busy)):
                assert isinstance(line, Connection)
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
        for worker in [worker for worker, _ in busy.values()] + [worker for _, worker in idle]:
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
            key = line.recv()
        except EOFError:
            return
        line.send(_outcome(key))
