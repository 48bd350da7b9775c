"""Atomic writes and checked reads: the one way to save a result.

A file has a kind, a version and a checksum, and replaces the old one atomically. Files are checked
before use: one that is not as it was written raises `FileError`, and none can allocate much more
than its own size. Nothing that is read is executed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.core.errors import RegardError, fail
from regard.core.packing import Buffer, pack, unpack
from regard.core.private_names import open_private, sweep_private

# Largest file of JSON that is read: a hundred times what a sweep of a thousand runs writes.
JSON_LIMIT = 256 << 20


class FileError(RegardError, OSError):
    """A file is damaged, is of another kind, or cannot be read or written."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file: its name and version, its contents, and the fix named in errors.

    `KINDS` has every kind, so that tests can damage a file of each.
    """

    name: str
    version: int
    holds: str
    fix: str
    error: type[FileError] = FileError

    def __post_init__(self) -> None:
        KINDS[self.name] = self

    def bad(self, path: object, got: str) -> None:
        """Raise the error of this kind."""
        raise self.error(str(path), got, self.holds, self.fix)


KINDS: dict[str, FileKind] = {}


# ------------------------------------------------------------------------------------- writing


def write_bytes(
    path: str | Path,
    data: Buffer | Sequence[Buffer],
    *,
    may_replace: bool | Callable[[Path], bool] = True,
    error: type[FileError] = FileError,
) -> Path:
    """Write a file atomically: a reader sees the old one or the new one, never a part.

    The bytes go to a temporary file beside it and are flushed to disk before the rename; temporary
    files of killed writers of the same file are removed. `may_replace` says whether an existing
    file may be replaced: True, False, or a function of its path, which is not asked where the file
    already has these very bytes.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> write_bytes(place, b"whole").read_bytes()
    b'whole'
    """
    path = Path(path)
    parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    with disk_errors(path, error):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
        make_folder(path.parent)
        replaced = (
            may_replace if isinstance(may_replace, bool) else _allows(may_replace, path, parts)
        )
        sweep_private(path)
        part, handle = open_private(path)
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in parts:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if replaced:
                os.replace(part, path)
            else:
                os.link(part, path)  # fails where there is one
        except FileExistsError:
            refuse_to_replace(path, error)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return path


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if they do not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "a file has this name", str(folder)) from None


def _allows(may_replace: Callable[[Path], bool], path: Path, parts: Sequence[Buffer]) -> bool:
    return not path.exists() or _holds(path, parts) or may_replace(path)


def _holds(path: Path, parts: Sequence[Buffer]) -> bool:
    """Return whether a file has these bytes already."""
    sizes = [memoryview(piece).nbytes for piece in parts]
    if path.stat().st_size != sum(sizes):
        return False
    with open(path, "rb") as file:
        return all(file.read(n) == bytes(x) for n, x in zip(sizes, parts, strict=True))


def word_for(*made_from: object) -> str:
    """Return a short word for what a file is made from: its origin, which tells it from others.

    >>> word_for("a rule", 3) == word_for("a rule", 3), word_for("a rule", 3) == word_for("a rule")
    (True, False)
    """
    return hashlib.sha256(repr(made_from).encode("utf-8", "replace")).hexdigest()[:16]


def need_origin(origin: str) -> None:
    """Raise unless a file that Regard writes says what it was made from, in one word."""
    if not origin or not origin.isalnum():
        fail(
            RegardError, "origin", repr(origin), "a word of letters and digits",
            "pass regard.core.files.word_for(...) of what the file is made from",
        )  # fmt: skip


NOT_OURS = "an existing file that Regard did not write, or that was changed since"
OF_ANOTHER = "an existing file that was made from another model or other inputs"


def refuse_to_replace(path: Path, error: type[FileError] = FileError, got: str = NOT_OURS) -> None:
    """Raise an error about an existing file that may not be replaced."""
    fail(
        error, str(path), got,
        "a new name", "name another file, or pass overwrite=True (--force in the shell)",
    )  # fmt: skip


def _sync_folder(folder: Path) -> None:
    """Flush the new name to disk, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path, error: type[FileError] = FileError) -> Iterator[None]:
    """Turn errors of the file system into one sentence."""
    try:
        yield
    except RegardError:
        raise
    except OSError as broken:
        full = broken.errno in (errno.ENOSPC, errno.EDQUOT)
        got = "no space left on its disk" if full else (broken.strerror or str(broken))
        kinds = {
            IsADirectoryError: "a folder has this name",
            NotADirectoryError: "a parent is a file",
        }
        got = kinds.get(type(broken), got)
        fail(
            error, str(path), got, "room to write a file to",
            "free some space, and run the same command again: finished work is kept" if full
            else "name another file or folder (--out), or change its permissions",
        )  # fmt: skip


def set_aside(path: str | Path) -> Path:
    """Move an outdated file to `older/` beside it, and return its new path."""
    path = Path(path)
    with disk_errors(path):
        with open(path, "rb") as file:
            mark = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        make_folder(path.parent / "older")
        moved = path.parent / "older" / f"{path.stem}.{mark}{path.suffix}"
        os.replace(path, moved)
    return moved


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the folder of `path` while its files are read, changed and written again.

    The lock is on the folder itself, so that no lock file remains; the system releases it when the
    process ends. Without such locks, as on Windows, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with disk_errors(path):
        make_folder(path.parent)
        handle = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network folders have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def reading(path: object, kind: FileKind) -> Iterator[None]:
    """Raise the error of `kind` for any failure while a file is read and parsed."""
    try:
        yield
    except FileError as broken:
        if isinstance(broken, kind.error):
            raise
        raise kind.error(broken.argument, broken.got, broken.expected, broken.fix) from broken
    except OSError as broken:
        kind.bad(path, broken.strerror or str(broken))
    except RegardError as broken:
        kind.bad(path, f"a file that holds what cannot be: {broken}")
    except RecursionError:
        kind.bad(path, "a damaged file (nested too deeply)")
    except Exception as broken:
        said = (str(broken).splitlines() or [""])[0][:120]
        kind.bad(path, f"a damaged file ({type(broken).__name__}: {said})")


def need_plain(path: str | Path) -> Path:
    """Raise unless a path is that of a file, and no device, pipe or folder: these have no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileError(str(path), "a device, a pipe or a folder", "a file", "name a file")
    return Path(path)


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """Read a file; with a limit of bytes also a device or a pipe, up to that."""
    if limit is None:
        need_plain(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise FileError(
                str(path), f"{size:,} bytes", f"up to {limit:,}", "read it with a larger limit"
            )
        # A device or a pipe has no reliable size.
        found = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(found) > limit:
        raise FileError(str(path), "a file without end", f"up to {limit:,} bytes", "name a file")
    return found


# --------------------------------------------------------------------- packed files (tensors)


def write_packed(
    path: str | Path, content: Any, kind: FileKind, *,
    may_replace: bool | Callable[[Path], bool] = True,
) -> Path:  # fmt: skip
    """Write tensors and plain values: a line that names the kind, a SHA-256, and the packed bytes.

    >>> import tempfile
    >>> kind = FileKind("regard-example", 1, "an example", "write it again")
    >>> place = write_packed(Path(tempfile.mkdtemp()) / "x", {"x": torch.ones(2)}, kind)
    >>> read_packed(place, kind)["x"].tolist()
    [1.0, 1.0]
    """
    body = pack(content)
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    top = _first_line(kind)
    return write_bytes(
        path, [top, digest.digest(), *body], may_replace=may_replace, error=kind.error
    )


def read_packed(path: str | Path, kind: FileKind, limit: int | None = None) -> Any:
    """Read what `write_packed` wrote, or raise the error of `kind`."""
    with reading(path, kind):
        found = read_bytes(path, limit)
        line, _, _ = found[:200].partition(b"\n")
        if line + b"\n" != _first_line(kind):
            words = line.decode("ascii", "replace").split(" ")
            if words[0] == kind.name and len(words) == 2:
                kind.bad(path, f"a file of version {words[1][:20]}, where this Regard reads "
                               f"version {kind.version}")  # fmt: skip
            other = KINDS.get(words[0])
            kind.bad(path, f"{other.holds}" if other else "a file that begins otherwise")
        body = memoryview(found)[len(line) + 1 + 32 :]
        if hashlib.sha256(body).digest() != found[len(line) + 1 : len(line) + 1 + 32]:
            kind.bad(path, "a damaged file (its checksum is wrong: it was cut off or changed)")
        return unpack(body)


def is_packed(path: str | Path, kind: FileKind) -> bool:
    """Return whether a file was written by `write_packed`, of a kind, and is intact."""
    try:
        found = read_bytes(path)
    except OSError:
        return False
    line, _, rest = found.partition(b"\n")
    body = memoryview(rest)[32:]
    return line.startswith(f"{kind.name} ".encode()) and hashlib.sha256(body).digest() == rest[:32]


def _first_line(kind: FileKind) -> bytes:
    return f"{kind.name} {kind.version}\n".encode()


# -------------------------------------------------------------------------------------- JSON


def begins_as_ours(path: Path) -> bool:
    """Return whether a file begins like those of `write_json` and `write_packed`."""
    try:
        with open(path, "rb") as file:
            begins = file.read(64)
    except OSError:
        return False
    return begins.startswith(b"regard-") or b'"format": "regard-' in begins


def write_json(
    path: str | Path, content: dict[str, Any], kind: FileKind, *,
    may_replace: bool | Callable[[Path], bool] = begins_as_ours,
) -> Path:  # fmt: skip
    """Write JSON for people and programs, with `format`, `version` and `checksum` beside it.

    An existing file is replaced if Regard wrote it, unless `may_replace` says otherwise. NaN and
    infinity become null, since JSON has neither.

    >>> import tempfile
    >>> kind = FileKind("regard-example", 1, "an example", "write it again")
    >>> place = write_json(Path(tempfile.mkdtemp()) / "x.json", {"x": [1.5, float("nan")]}, kind)
    >>> read_json(place, kind)["x"]
    [1.5, None]
    """
    return write_bytes(path, json_bytes(content, kind), may_replace=may_replace, error=kind.error)


def json_bytes(content: dict[str, Any], kind: FileKind) -> bytes:
    """Write JSON as `write_json` does, and return the bytes."""
    said = {"format": kind.name, "version": kind.version, **_finite(content)}
    said["checksum"] = json_checksum(said)
    text = json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def json_checksum(content: dict[str, Any]) -> str:
    """Hash JSON by content; spaces, line ends and the order of keys do not count."""
    said = {str(key): x for key, x in content.items() if key != "checksum"}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def read_json(path: str | Path, kind: FileKind, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read what `write_json` wrote, or raise the error of `kind`."""
    with reading(path, kind):
        return parse_json(read_bytes(path, limit), path, kind)


def parse_json(body: bytes, path: str | Path, kind: FileKind) -> dict[str, Any]:
    """Parse and check JSON of `kind` (inside of `reading`)."""
    said: Any = json.loads(body.decode("utf-8", "surrogatepass"), parse_constant=_no_constant)
    if not isinstance(said, dict) or said.get("format") != kind.name:
        kind.bad(path, f"JSON that is no {kind.name}")
    if said.get("version") != kind.version:
        kind.bad(path, f"a file of version {str(said.get('version'))[:20]}, where this Regard "
                       f"reads version {kind.version}")  # fmt: skip
    if said.pop("checksum", None) != json_checksum(said):
        kind.bad(path, "a damaged file (its checksum is wrong: it was cut off or changed)")
    return dict(said)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(key): _finite(x) for key, x in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(x) for x in content]
    return content
