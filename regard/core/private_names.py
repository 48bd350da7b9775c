"""Temporary files that are renamed when complete, and the removal of those of killed processes.

A temporary file is locked (`flock`) while its writer lives. The next writer of the same file
removes its temporary files that are not locked.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path

# A name without a lock is being made, unless it is older than this many seconds.
UNHELD = 60.0


def open_private(path: Path) -> tuple[Path, int]:
    """Open a new temporary file beside `path`, and lock it; return its path and its handle."""
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(part, flags | getattr(os, "O_BINARY", 0), 0o666)
    _hold(handle)
    return part, handle


def sweep_private(path: Path) -> list[Path]:
    """Remove temporary files of killed writers of `path`, and return their paths.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "x.json"
    >>> left, handle = open_private(place)
    >>> os.utime(left, (0, 0)); sweep_private(place)  # held
    []
    >>> os.close(handle); sweep_private(place) == [left], left.exists()
    (True, False)
    """
    pattern = re.compile(rf"\.{re.escape(path.name[:200])}\.[0-9a-f]{{16}}\.part")
    removed = []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and _is_left(entry):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed.append(Path(entry.path))
    return removed


def _is_left(entry: os.DirEntry[str]) -> bool:
    """Return whether a plain file is of a writer that has ended."""
    try:
        if not entry.is_file(follow_symlinks=False):
            return False
        if time.time() - entry.stat(follow_symlinks=False).st_mtime < UNHELD:
            return False
        handle = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        return _hold(handle)
    finally:
        os.close(handle)


def _hold(handle: int) -> bool:
    """Lock a file until its handle is closed; return False if another holds it, or locks fail."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # as on Windows, and in some network folders
        return False
    return True
