"""Which files may be overwritten: those that Regard made from the same and nobody changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from regard.core.files import (
    NOT_OURS,
    OF_ANOTHER,
    FileError,
    need_origin,
    read_bytes,
    refuse_to_replace,
    set_aside,
)
from regard.core.picture_files import is_our_picture
from regard.views.run_file import Run, is_run, origin_at
from regard.views.run_table import run_table

# The last line of a page: a comment with what it was made from, and the SHA-256 of all before it.
_SEAL = b"<!-- regard-page of "


def sealed_page(text: str, origin: str) -> bytes:
    """Return a page with its seal, which tells whether somebody changed it since.

    `origin` is a word for what the page was made from.

    >>> sealed_page("<p>", "0a1b")[:33]
    b'<p><!-- regard-page of 0a1b sha25'
    """
    need_origin(origin)
    return _sealed(text.encode("utf-8", "replace"), origin.encode())


def may_replace(origin: str, error: type[FileError] = FileError) -> Callable[[Path], bool]:
    """Return what tells whether a file may go: one of Regard's, made from the same.

    It raises for one of Regard's that was made from something else.
    """

    def tell(path: Path) -> bool:
        if not is_ours(path):
            return False
        there = origin_of_file(path)
        if there is not None and there != origin:
            refuse_to_replace(path, error, OF_ANOTHER)
        return True

    return tell


def make_room(path: Path, origin: str, error: type[FileError] = FileError) -> None:
    """Move a page of Regard's that was made from something else to `older/` beside it.

    For pages that take long to make, of a folder whose plan changes. What is not Regard's, or was
    edited, is refused.
    """
    if path.exists():
        if not is_ours(path):
            refuse_to_replace(path, error)
        if origin_of_file(path) != origin:
            set_aside(path)


def need_replaceable(paths: Sequence[Path], origin: str) -> None:
    """Raise if one of some files may not go: before the work, and before any of them is written."""
    for path in paths:
        if not path.exists():
            continue
        same = is_our_picture(path, origin) if path.suffix == ".png" else may_replace(origin)(path)
        if not same:
            refuse_to_replace(path, got=OF_ANOTHER if is_ours(path) else NOT_OURS)


def is_ours(path: Path) -> bool:
    """Return whether a file is a page, run, picture or table of Regard that nobody changed.

    A table (.csv) has no place for a seal: it is Regard's if the run beside it has these numbers.
    """
    if path.suffix in (".npz", ".json"):
        return is_run(path)
    if path.suffix == ".png":
        return is_our_picture(path)
    try:
        body = read_bytes(path)
    except OSError:
        return False
    if path.suffix == ".csv":
        beside = path.with_suffix(".npz")
        return is_run(beside) and run_table(Run.load(beside)) == body
    page, origin = _parted(body)
    return origin is not None and _sealed(page, origin) == body


def origin_of_file(path: Path) -> str | None:
    """Return what a file of Regard says that it was made from; None where it has no place for it.

    A table has the run beside it to say so.
    """
    if path.suffix == ".csv":
        beside = path.with_suffix(".npz")
        return origin_at(beside) if is_run(beside) else None
    if path.suffix in (".npz", ".json"):
        return origin_at(path)
    if path.suffix == ".html":
        origin = _parted(read_bytes(path))[1]
        return None if origin is None else origin.decode("ascii", "replace")
    return None


def _parted(body: bytes) -> tuple[bytes, bytes | None]:
    """Part a page from what its seal says that it was made from."""
    at = body.rfind(_SEAL)
    if at < 0:
        return body, None
    return body[:at], body[at + len(_SEAL) :].partition(b" sha256 ")[0]


def _sealed(body: bytes, origin: bytes) -> bytes:
    digest = hashlib.sha256(body + origin).hexdigest().encode()
    return body + _SEAL + origin + b" sha256 " + digest + b" -->\n"
