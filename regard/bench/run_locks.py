"""Locks: which worker does which run, where several share one folder.

A lock is a file made by an atomic call. It names its process and is touched while the run goes on.
A lock is stale when its process is gone (on this machine) or it was not touched for long (on
another); whoever creates the next generation of the lock, again atomically, takes the run over. A
worker that finds a newer generation than its own has lost the run.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from regard.bench.records import BenchError
from regard.core.files import disk_errors

STALE_AFTER = 300.0


@dataclass(frozen=True)
class RunLock:
    """A lock on a run, held while `mine()` is true."""

    folder: Path
    key: str
    generation: int
    token: str

    @property
    def path(self) -> Path:
        """The file of the lock."""
        return self.folder / f"{self.key}.{self.generation}"

    def touch(self) -> None:
        """Refresh the lock while the run goes on."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return

    def mine(self) -> bool:
        """Return whether no other worker took the run over."""
        return _newest(self.folder, self.key) == self.generation

    def release(self) -> None:
        """Release the run, and remove older generations of the lock."""
        for number in range(self.generation + 1):
            (self.folder / f"{self.key}.{number}").unlink(missing_ok=True)


def claim(folder: Path, key: str, stale_after: float = STALE_AFTER) -> RunLock | None:
    """Lock a run; None if another worker holds it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     ours = claim(Path(place), "run")
    ...     ours.mine(), claim(Path(place), "run")
    (True, None)
    """
    with disk_errors(folder, BenchError):
        folder.mkdir(parents=True, exist_ok=True)
        newest = _newest(folder, key)
        if newest is not None and not stale(folder / f"{key}.{newest}", stale_after):
            return None
        ours = RunLock(folder, key, 0 if newest is None else newest + 1, uuid.uuid4().hex)
        said = {"pid": os.getpid(), "host": platform.node(), "token": ours.token}
        # Link it once it is written: nobody reads a partial file, and only one link succeeds.
        part = folder / f".{key}.{ours.token}.part"
        try:
            part.write_text(json.dumps(said), encoding="utf-8")
            try:
                os.link(part, ours.path)
            except FileExistsError:
                return None
        finally:
            part.unlink(missing_ok=True)
        return ours


def remove_stale(folder: Path, key: str) -> None:
    """Remove the lock of a worker that was killed after its run was written."""
    newest = _newest(folder, key)
    if newest is not None and stale(folder / f"{key}.{newest}"):
        RunLock(folder, key, newest, "").release()


def stale(path: Path, stale_after: float = STALE_AFTER) -> bool:
    """Return whether the worker that made a lock is gone."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        age = time.time() - path.stat().st_mtime
        gone = said["host"] == platform.node() and not _alive(int(said["pid"]))
    except FileNotFoundError:
        return False  # just released: look again on the next round
    except Exception:  # a damaged lock belongs to nobody
        return True
    return gone or age > stale_after


def _newest(folder: Path, key: str) -> int | None:
    numbers = [p.name.removeprefix(f"{key}.") for p in folder.glob(f"{key}.*")]
    return max((int(n) for n in numbers if n.isdigit()), default=None)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:  # a zombie process still has its number
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"
