"""Start a process group of a few processes on this machine, and collect their results.

For tests, demonstrations and checks. Real work is started by torchrun, accelerate, srun or Ray.
One process does the slow imports, and the ranks are forked from it, where the system can fork.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from regard.core.errors import RegardError, fail


class LaunchError(RegardError):
    """A process that was started failed, or did not end in time."""


@dataclass(frozen=True)
class Job:
    """`target(*args)` in `world` processes of one gloo group.

    `target` is "module:function", or "path/to/file.py:function"; arguments and results are JSON.
    `timeout` is the time for all processes, `message_timeout` that of a gloo message, `interrupt`
    the seconds after which all get the signal of Ctrl-C, if any. Once one process fails, the others
    have `grace` seconds to notice.
    """

    world: int
    target: str
    args: tuple[Any, ...] = ()
    timeout: float = 300.0
    message_timeout: float = 60.0
    interrupt: float | None = None
    grace: float = 10.0


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit code (None: it was stopped), result, and standard error."""

    rank: int
    code: int | None
    result: Any
    errors: str
    seconds: float

    @property
    def last(self) -> str:
        """Return the last line that it wrote to standard error."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def launch(jobs: Sequence[Job]) -> list[list[Ended]]:
    """Run jobs one after the other; return how each process of each ended.

    A process that is not done in time is stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        told, found = Path(folder) / "jobs.json", Path(folder) / "ended.json"
        told.write_text(json.dumps([asdict(job) for job in jobs]), "utf-8")
        command = [sys.executable, "-m", "regard.schemes.local_processes", folder]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
        limit = 60.0 + sum(job.timeout + job.grace for job in jobs)
        done = subprocess.run(command, env=env, timeout=limit, check=False)
        if done.returncode or not found.exists():
            fail(
                LaunchError, "launch", f"an end with {done.returncode}", "an end without an error",
                "look at what it wrote above",
            )  # fmt: skip
        return [[Ended(**x) for x in ends] for ends in json.loads(found.read_text("utf-8"))]


def results(world: int, target: str, *args: Any, timeout: float = 300.0) -> list[Any]:
    """Run `target(*args)` in `world` processes, and return what each returned."""
    (ended,) = launch([Job(world, target, args, timeout)])
    failed = sorted((x for x in ended if x.code not in (0, None)), key=lambda x: x.seconds)
    bad = {x.rank: (x.code not in (1, 130), x.last) for x in failed}
    late = [x.rank for x in ended if x.code is None]
    if bad or late:
        rank = culprit(bad) if bad else late[0]
        how = f"ended with {ended[rank].code}: {ended[rank].last}" if bad else "did not end in time"
        fail(
            LaunchError, f"rank {rank}", how, "an end without an error",
            "run it with one process first",
        )  # fmt: skip
    return [x.result for x in ended]


# What the others of a group say once a rank is gone.
_AFTERMATH = (
    "PeerError", "Connection closed", "Connection reset", "DistBackendError", "DistNetworkError",
)  # fmt: skip


def is_aftermath(said: str) -> bool:
    """Return whether an error is one that others raise when a rank of their group is gone."""
    return any(word in said for word in _AFTERMATH)


def culprit(failed: Mapping[int, tuple[bool, str]]) -> int:
    """Return the rank to name, of those that failed, in that order: (whether it died, its error).

    >>> culprit({0: (False, "Connection closed"), 2: (False, "ValueError: a"), 1: (True, "")})
    1
    """

    def order(rank: int) -> int:
        died, said = failed[rank]
        return 0 if died else 1 + is_aftermath(said)

    return min(failed, key=order)


def function_of(target: str) -> Any:
    """Import a function by "module:function" or "path/to/file.py:function"."""
    home, _, name = target.rpartition(":")
    if home.endswith(".py"):
        known = sys.modules.get(Path(home).stem)
        if known is not None and getattr(known, "__file__", None) == home:
            return getattr(known, name)
        spec = importlib.util.spec_from_file_location(Path(home).stem, home)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(home)
    return getattr(module, name)


def _run_all(folder: Path) -> None:
    jobs = [Job(**x) for x in json.loads((folder / "jobs.json").read_text("utf-8"))]
    forks = sys.platform == "linux"
    if forks:  # once, for all ranks of all jobs
        import torch.distributed  # noqa: F401

        for job in jobs:
            function_of(job.target)
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    found = []
    for number, job in enumerate(jobs):
        place = folder / str(number)
        place.mkdir()
        processes: list[Any] = [
            context.Process(target=_rank, args=(job, rank, str(place))) for rank in range(job.world)
        ]
        began = time.monotonic()
        for process in processes:
            process.start()
        try:
            ends = _waited(processes, began, job)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        found.append([
            {
                "rank": rank, "code": process.exitcode if rank in ends else None,
                "result": _read(place / f"result{rank}"),
                "errors": (place / f"errors{rank}").read_text("utf-8", "replace"),
                "seconds": ends.get(rank, job.timeout),
            }
            for rank, process in enumerate(processes)
        ])  # fmt: skip
    (folder / "ended.json").write_text(json.dumps(found), "utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _waited(processes: Sequence[Any], began: float, job: Job) -> dict[int, float]:
    """Wait for processes; return the seconds after which each ended by itself."""
    ends: dict[int, float] = {}
    until, interrupt = began + job.timeout, job.interrupt
    while len(ends) < len(processes) and time.monotonic() < until:
        now = time.monotonic() - began
        if interrupt is not None and now > interrupt:
            interrupt = None
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        for rank, process in enumerate(processes):
            if rank not in ends and not process.is_alive():
                ends[rank] = now
                if process.exitcode:
                    until = min(until, time.monotonic() + job.grace)
        time.sleep(0.01)
    return ends


def _rank(job: Job, rank: int, place: str) -> None:
    """Run one rank; on failure its last line of standard error is the error."""
    with open(Path(place) / f"errors{rank}", "w", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 2)
    code = 1
    try:
        import torch
        from torch import distributed as dist

        torch.set_num_threads(1)
        store = dist.FileStore(str(Path(place) / "store"), job.world)  # type: ignore[attr-defined]
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(job.world))
        dist.init_process_group(
            "gloo", store=store, rank=rank,
            world_size=job.world, timeout=timedelta(seconds=job.message_timeout),
        )  # fmt: skip
        made = function_of(job.target)(*job.args)
        (Path(place) / f"result{rank}").write_text(json.dumps(made), "utf-8")
        code = 0
    except KeyboardInterrupt:
        os.write(2, b"KeyboardInterrupt: this rank was told to stop\n")
        code = 130
    except RegardError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    sys.stdout.flush()
    # Without a clean end of the group, which would wait for those that hang.
    os._exit(code)


if __name__ == "__main__":
    from regard.schemes.local_processes import _run_all as run_all  # its Job, not that of __main__

    run_all(Path(sys.argv[1]))
