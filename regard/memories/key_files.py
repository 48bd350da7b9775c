"""Temporary files of keys: removed with their owner, or later where a process was killed.

Every process keeps its files in a folder of its own, `regard-keys-*`, beside a lock that the system
releases when the process ends, however it ends. The first file in a folder removes those of
processes that no longer hold their locks, which also works between containers that share a disk.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

PREFIX = "regard-keys-"
# A folder without a lock is being created, unless it is older than this many seconds.
UNLOCKED = 3600.0

_guard = threading.RLock()
_homes: dict[tuple[int, str], _Home] = {}
_forks = 0


def forks() -> int:
    """Return the number of forks of this process: a child may read what was written before one."""
    return _forks


def _before_fork() -> None:
    """Count the fork, and hold the lock, so that no child inherits it locked by another thread."""
    global _forks
    _guard.acquire()
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_guard.release,
        after_in_child=_guard.release,
    )


class KeyFile:
    """An empty file in `folder` (the system's, where none is named), removed with this object.

    The copy of the object in a fork removes nothing.

    >>> file = KeyFile(); path = file.path; path.exists()
    True
    >>> del file; path.exists()
    False
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        place = os.path.abspath(tempfile.gettempdir() if folder is None else folder)
        self.owner = os.getpid()
        with _guard:
            home = _homes.get((self.owner, place))
            if home is None:
                sweep(place)
                home = _homes[self.owner, place] = _Home(place)
            self.path = home.path / f"{secrets.token_hex(8)}.keys"
            home.files += 1
        weakref.finalize(self, _remove, self.path, self.owner, place)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


class _Home:
    """The folder of this process inside a folder, and its lock."""

    def __init__(self, place: str) -> None:
        self.files = 0
        while True:
            self.path = Path(place) / f"{PREFIX}{secrets.token_hex(8)}"
            self.path.mkdir(0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            with contextlib.suppress(FileNotFoundError):  # removed while it was created: try again
                self.lock = os.open(self.path / "lock", flags, 0o600)
                if _locks(self.lock) and os.fstat(self.lock).st_nlink:
                    return
                os.close(self.lock)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _locks(handle: int) -> bool:
    """Take the lock of a folder; return False if another process has it."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError:
        return False
    return True


def sweep(place: str | Path) -> None:
    """Remove the key files of processes that ended without removing them."""
    for home in Path(place).glob(f"{PREFIX}*"):
        handle: Any = None
        try:
            handle = os.open(home / "lock", os.O_RDWR)
            if _locks(handle):
                shutil.rmtree(home, ignore_errors=True)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                if time.time() - home.stat().st_mtime > UNLOCKED:
                    shutil.rmtree(home, ignore_errors=True)
        except OSError:
            continue  # of another user
        finally:
            if handle is not None:
                os.close(handle)


def _remove(path: Path, owner: int, place: str) -> None:
    if os.getpid() != owner:
        return
    with _guard:
        path.unlink(missing_ok=True)
        home = _homes[owner, place]
        home.files -= 1
        if not home.files:
            del _homes[owner, place]
            home.close()
