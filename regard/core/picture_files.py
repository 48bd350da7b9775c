"""Write pictures atomically, marked as Regard's, and replace only files with that mark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from regard.core.files import (
    OF_ANOTHER,
    FileError,
    need_origin,
    read_bytes,
    refuse_to_replace,
    write_bytes,
)

MADE_BY = "Regard"
# Where each format says what made a picture.
_MARKS = {"png": "Software", "svg": "Creator", "pdf": "Creator"}


def write_figure(
    figure: Any, path: str | Path, *, origin: str, overwrite: bool = False,
    error: type[FileError] = FileError, **how: Any,
) -> Path:  # fmt: skip
    """Write a matplotlib figure; `how` goes to its `savefig`.

    `origin` is a word for what the picture was made from (`word_for`). A picture of Regard of the
    same origin that is there is replaced, anything else only where `overwrite` is true.
    """
    need_origin(origin)
    kind, held = Path(path).suffix.removeprefix(".").lower() or "png", io.BytesIO()
    mark = {_MARKS[kind]: f"{MADE_BY} {origin}"} if kind in _MARKS else None
    figure.savefig(held, format=kind, metadata=mark, **how)

    def may_replace(there: Path) -> bool:
        if is_our_picture(there) and not is_our_picture(there, origin):
            refuse_to_replace(there, error, OF_ANOTHER)
        return is_our_picture(there)

    return write_bytes(
        path, held.getvalue(), may_replace=True if overwrite else may_replace, error=error
    )


def is_our_picture(path: Path, origin: str = "") -> bool:
    """Return whether a picture (PNG, SVG or PDF) is Regard's, and of an origin, if one is given."""
    try:
        body = read_bytes(path)
    except OSError:
        return False
    begins = body.startswith((b"\x89PNG", b"<?xml", b"%PDF"))
    return begins and f"{MADE_BY} {origin}".rstrip().encode() in body[:4096] + body[-4096:]
