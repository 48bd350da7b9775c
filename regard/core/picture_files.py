"""Write pictures atomically, marked as Regard's, and replace only files with that mark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from regard.core.files import FileError, write_bytes

MADE_BY = "Regard"
# Where each format says what made a picture.
_MARKS = {"png": "Software", "svg": "Creator", "pdf": "Creator"}


def write_figure(
    figure: Any, path: str | Path, *, overwrite: bool = False, error: type[FileError] = FileError,
    **how: Any,
) -> Path:  # fmt: skip
    """Write a matplotlib figure; `how` goes to its `savefig`.

    A picture of Regard that is there is replaced, anything else only where `overwrite` is true.
    """
    kind, held = Path(path).suffix.removeprefix(".").lower() or "png", io.BytesIO()
    mark = {_MARKS[kind]: MADE_BY} if kind in _MARKS else None
    figure.savefig(held, format=kind, metadata=mark, **how)
    return write_bytes(
        path, held.getvalue(), may_replace=True if overwrite else is_our_picture, error=error
    )


def is_our_picture(path: Path) -> bool:
    """Return whether a picture (PNG, SVG or PDF) is marked as made by Regard."""
    try:
        body = path.read_bytes()
    except OSError:
        return False
    begins = body.startswith((b"\x89PNG", b"<?xml", b"%PDF"))
    return begins and MADE_BY.encode() in body[:4096] + body[-4096:]
