"""Write pictures atomically, marked as Regard's, and replace only files with that mark."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
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
_BEGINS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
_IEND = b"\0\0\0\0IEND\xaeB`\x82"


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
        path, _sealed(held.getvalue(), kind), may_replace=True if overwrite else may_replace,
        error=error,
    )  # fmt: skip


def is_our_picture(path: Path, origin: str = "") -> bool:
    """Return whether a picture (PNG, SVG or PDF) is Regard's and unchanged; of an origin, if given.

    A program that edits pictures may keep the mark of who made them, but not the hash of all bytes.
    """
    try:
        body = read_bytes(path)
    except OSError:
        return False
    kind = next((kind for kind, begins in _BEGINS.items() if body.startswith(begins)), None)
    if kind is None or f"{MADE_BY} {origin}".rstrip().encode() not in body:
        return False
    end = len(_IEND) if kind == "png" else 0
    plain = body[: len(body) - end - len(_seal(b"", kind))] + body[len(body) - end :]
    return _sealed(plain, kind) == body


def _sealed(body: bytes, kind: str) -> bytes:
    """Put the hash of a picture into it: a comment at its end, of PNG a chunk before the last."""
    if kind not in _BEGINS:
        return body
    end = len(body) - (len(_IEND) if kind == "png" else 0)
    return body[:end] + _seal(body, kind) + body[end:]


def _seal(body: bytes, kind: str) -> bytes:
    digest = hashlib.sha256(body).hexdigest().encode()
    if kind == "png":
        chunk = b"tEXtSHA256\0" + digest
        return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"<!-- sha256 %b -->\n" % digest if kind == "svg" else b"%% sha256 %b\n" % digest
