"""Which files may be overwritten: those that Regard wrote and nobody changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from regard.core.picture_files import is_our_picture
from regard.views.run_file import is_run

# The last line of a page: a comment with the SHA-256 of all before it.
_SEAL = b"<!-- regard-page sha256 "


def sealed_page(text: str) -> bytes:
    """Return a page with its seal, which tells whether somebody changed it since.

    >>> len(sealed_page("<p>")) - len("<p>")
    93
    """
    return _sealed(text.encode("utf-8", "replace"))


def is_ours(path: Path) -> bool:
    """Return whether a file is a page, run, picture or table of Regard that nobody changed.

    A table (.csv) has no seal: it is recognized by its columns.
    """
    if path.suffix in (".npz", ".json"):
        return is_run(path)
    if path.suffix == ".png":
        return is_our_picture(path)
    try:
        body = path.read_bytes()
    except OSError:
        return False
    if path.suffix == ".csv":
        return body.startswith(b"head,layer,kind,module,role")
    at = body.rfind(_SEAL)
    return at >= 0 and _sealed(body[:at]) == body


def _sealed(body: bytes) -> bytes:
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b" -->\n"
