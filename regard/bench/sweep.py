"""A sweep: every layer on every task from every seed, by several processes that share a folder.

Results are on disk. The same sweep started again does the rest; two at once on one folder share the
work, since each run is locked by the worker that does it.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from regard.bench.backbone import width_for
from regard.bench.measuring import threads_each
from regard.bench.records import RECORD, SWEEP, BenchError, TrainingRun, kept_record, record_path
from regard.bench.run_budget import RunBudget
from regard.bench.run_locks import RunLock, claim, remove_stale
from regard.bench.specs import make_layer, need_pattern, read_spec, task_of, why_not
from regard.bench.training import Progress, carry_out
from regard.core.errors import RegardError, RuleError, ValueRangeError, fail
from regard.core.files import begins_as_ours, read_json, set_aside, write_json
from regard.core.hashes import hash_of_code
from regard.core.waiting import wait_for_any
from regard.layers.registry import get
from regard.tasks import PATTERNS


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep, and the (layer, task, pattern, reason) that were left out."""

    runs: tuple[TrainingRun, ...]
    left_out: tuple[tuple[str, str, str, str], ...] = ()
    budget: str = ""


def plan(
    layers: Sequence[str], tasks: Sequence[str], *, patterns: Sequence[str] = (),
    seeds: int = 1, budget: RunBudget, workers: int = 1, **backbone: Any,
) -> SweepPlan:  # fmt: skip
    """Plan a sweep; check every name before anything runs.

    Without `patterns` each task is posed in its first. A layer that supports no pattern of any task
    is an error; one that supports some leaves out the others.

    >>> from regard.bench.run_budget import read_budget
    >>> len(plan(["mha", "linear"], ["mqar", "copy"], budget=read_budget("10steps")).runs)
    4
    """
    if not layers or not tasks:
        fail(RuleError, "layers, tasks", "none", "at least one of each", "bench mha --tasks mqar")
    if seeds < 1:
        fail(ValueRangeError, "seeds", seeds, "at least 1", "leave it out for one")
    for pattern in patterns:
        need_pattern("mha", pattern)
    runs, left_out = [], []
    for said, of in itertools.product(dict.fromkeys(tasks), dict.fromkeys(layers)):
        task, kind = task_of(said), get(read_spec(of)[0])
        ways = [p for p in patterns if p in task.patterns] if patterns else task.patterns[:1]
        if not ways:
            posed = f"{said} is posed in {', '.join(task.patterns)}"
            left_out += [(of, said, p, posed) for p in patterns]
        for pattern in ways:
            reason = why_not(kind, pattern)
            if reason is not None:
                left_out.append((of, said, pattern, f"{PATTERNS[pattern]}: {reason}"))
                continue
            runs += [TrainingRun(of, said, pattern, seed, **backbone) for seed in range(seeds)]
    for of in dict.fromkeys(layers):
        if not any(run.layer == of for run in runs):
            lacking = [x for x in left_out if x[0] == of]
            need_pattern(read_spec(of)[0], lacking[0][2])
            fail(RuleError, "tasks", list(tasks), "one in a pattern asked for", lacking[0][3])
    _try_settings(runs)
    return SweepPlan(
        tuple(_shared_out(run, budget, len(runs), workers) for run in runs),
        tuple(left_out),
        budget.describe(),
    )


def _try_settings(runs: Sequence[TrainingRun]) -> None:
    """Build each layer on the meta device, so that a misspelled setting fails before the sweep."""
    for run in {run.layer: run for run in runs}.values():
        try:
            with torch.device("meta"):
                longest = task_of(run.task).longest
                make_layer(run.layer, run.pattern, run.dim, run.heads, longest)
        except RegardError as wrong:
            if wrong.argument == "settings":
                raise
            if wrong.argument in read_spec(run.layer)[1]:
                raise type(wrong)(
                    f"layers: {wrong.argument} of {run.layer}", wrong.got, wrong.expected, wrong.fix
                ) from None
        except Exception:  # any other error breaks its own runs, and is reported there
            continue


def _shared_out(run: TrainingRun, budget: RunBudget, runs: int, workers: int) -> TrainingRun:
    """Set a run's part of the budget, and its width if parameters are to be equal."""
    if budget.params is not None:
        task = task_of(run.task)
        dim = width_for(
            budget.params, run.layer, task, run.pattern, heads=run.heads, depth=run.depth
        )
        run = replace(run, dim=dim)
    seconds = budget.seconds
    if seconds is not None:
        # Rounds of concurrent runs; the last round may be smaller.
        seconds = round(seconds / -(-runs // workers), 3)
    return replace(run, seconds=seconds, flops=budget.flops, steps=budget.steps)


@dataclass(frozen=True)
class News:
    """An event of a run, of whose budget `share` is used."""

    key: str
    what: str  # "kept", "started", "going", "done", "broke"
    share: float = 0.0
    score: float = float("nan")
    trace: str = ""


def one(
    run: TrainingRun, folder: Path, device: str = "cpu", told: Callable[[News], None] | None = None
) -> str:
    """Do a run unless it is done or taken by another worker; return "kept", "taken" or "done"."""
    path = record_path(folder, run)
    if kept_record(folder, run, device) is not None:
        return "kept"
    ours = claim(folder / "claims", run.key)
    if ours is None:
        return "taken"
    try:
        if kept_record(folder, run, device) is not None:  # done between the two checks
            return "kept"
        if path.exists():  # of other code, or of another device
            set_aside(path)
        kept = folder / "unfinished" / f"{run.key}.pt"
        heard = told or (lambda news: None)
        heard(News(run.key, "started"))
        record = carry_out(run, device=device, kept=kept, told=_keeping(ours, run, heard))
        if ours.mine():
            write_json(path, record, RECORD)
        heard(News(run.key, "done", 1.0, record["score"]))
        return "done"
    finally:
        if ours.mine():
            ours.release()


def _keeping(
    ours: RunLock, run: TrainingRun, heard: Callable[[News], None]
) -> Callable[[float, Progress], None]:
    """Refresh the lock and report progress, at most twice a second."""
    last = [0.0]

    def told(share: float, progress: Progress) -> None:
        now = time.monotonic()
        if now - last[0] > 0.5:
            last[0] = now
            ours.touch()
            heard(News(run.key, "going", share, progress.curve[-1]["score"]))

    return told


def keep_plan(plan: SweepPlan, folder: Path) -> None:
    """Write the plan of a sweep, for its report; that of another is moved to `older/`."""
    said = {"runs": [asdict(run) for run in plan.runs], "budget": plan.budget,
            "left_out": [list(x) for x in plan.left_out], "code": hash_of_code()}  # fmt: skip
    path = folder / "sweep.json"
    if begins_as_ours(path) and not _is_plan(path, said):
        set_aside(path)
    write_json(path, said, SWEEP)


def _is_plan(path: Path, said: dict[str, Any]) -> bool:
    """Return whether a file has the plan of the same sweep, whatever the code was."""
    with contextlib.suppress(BenchError):
        there = read_json(path, SWEEP)
        return all(there.get(name) == said[name] for name in ("runs", "budget", "left_out"))
    return False


def carry_out_all(
    plan: SweepPlan, folder: Path, *, workers: int = 1, device: str = "cpu"
) -> Iterator[News]:
    """Do the rest of a plan, and yield its events.

    Every worker is a process with its share of the cores. If one dies only its run breaks, and the
    others go on.
    """
    keep_plan(plan, folder)
    due = []
    for run in plan.runs:
        record = kept_record(folder, run, device)
        if record is not None:
            remove_stale(folder / "claims", run.key)
            yield News(run.key, "kept", 1.0, record["score"])
        else:
            due.append(run)
    if due:
        yield from _by_processes(due, folder, max(1, min(workers, len(due))), device)


def _by_processes(
    runs: list[TrainingRun], folder: Path, workers: int, device: str
) -> Iterator[News]:
    start = multiprocessing.get_context("spawn")
    # A pipe for each worker: one that is killed cannot hold a lock of the others.
    lines: dict[Connection, Any] = {}
    running: dict[Connection, str] = {}
    with _few_threads(workers):
        for number in range(workers):
            far, near = start.Pipe(duplex=False)
            # Workers start at different runs, so that they seldom compete.
            part = runs[number::workers] + [r for i in range(workers) if i != number
                                            for r in runs[i::workers]]  # fmt: skip
            process = start.Process(target=_work, args=(near, part, folder, workers, device))
            process.daemon = True
            process.start()
            near.close()
            lines[far] = process
    told: set[str] = set()
    try:
        while lines:
            for line in wait_for_any(list(lines)):
                try:
                    news: Any = line.recv()
                except (EOFError, ConnectionError):
                    process = lines.pop(line)
                    process.join()
                    if line in running:
                        died = f"its process died (exit code {process.exitcode})"
                        yield News(running.pop(line), "broke", trace=died)
                    continue
                if isinstance(news, RegardError):
                    raise news
                if news.what == "started":
                    running[line] = news.key
                elif news.what in ("done", "broke", "kept"):
                    running.pop(line, None)
                    if news.key in told:
                        continue
                    told.add(news.key)
                yield news
    finally:
        for process in lines.values():
            process.terminate()
            process.join()


@contextmanager
def _few_threads(workers: int) -> Iterator[None]:
    """Limit the threads of processes started here to their share of the cores."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads_each(workers))
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _work(line: Any, runs: list[TrainingRun], folder: Path, workers: int, device: str) -> None:
    """Do the runs that no other worker holds, then wait for those whose worker may yet die."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(threads_each(workers))
    waiting, broken = list(runs), set[str]()
    while waiting:
        taken = []
        for run in waiting:
            try:
                outcome = one(run, folder, device, line.send)
            except (RegardError, MemoryError) as error:
                _send_error(line, run, error)
                continue
            except Exception:  # report a broken run, and go on with the others
                line.send(News(run.key, "broke", trace=traceback.format_exc()))
                broken.add(run.key)
                continue
            if outcome == "kept":
                record = kept_record(folder, run, device) or {"score": None}
                line.send(News(run.key, "kept", 1.0, record["score"]))
            if outcome == "taken":
                taken.append(run)
        waiting = taken
        if waiting:
            time.sleep(0.2)


def _send_error(line: Any, run: TrainingRun, error: BaseException) -> None:
    """Send an error: a full disk or a foreign file ends the sweep, others break their run."""
    if isinstance(error, BenchError):
        line.send(error)
    else:
        line.send(News(run.key, "broke", trace=str(error)))
