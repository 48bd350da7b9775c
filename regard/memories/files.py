"""Memories as files: written whole or not at all, and checked when they are read."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from regard.core.errors import RegardError, fail

MAGIC = b"regard memory 1\n"


class FileError(RegardError, OSError):
    """A file is broken, or of something else."""


def write(path: str | Path, content: dict[str, Any]) -> Path:
    """Write tensors and plain values, with a checksum; a file that was there stays until the end.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "x"
    >>> read(write(place, {"x": torch.ones(2)}))["x"].tolist()
    [1.0, 1.0]
    """
    path = Path(path)
    held = io.BytesIO()
    torch.save(content, held)
    body = held.getvalue()
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "wb") as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        fail(
            FileError, "path", f"{path} ({error.strerror})",
            f"room for {len(body):,} bytes in a folder that can be written to",
            "free some room, or name another folder",
        )  # fmt: skip
    return path


def read(path: str | Path) -> dict[str, Any]:
    """Read what `write` wrote, or say what is wrong with it."""
    path = Path(path)
    try:
        found = path.read_bytes()
    except OSError as error:
        fail(FileError, "path", f"{path} ({error.strerror})", "a file", "name one that is there")
    start = len(MAGIC)
    if not found.startswith(MAGIC):
        fail(
            FileError, "path", f"{path}, which begins otherwise", "a file that Regard wrote",
            "name a file made by save",
        )  # fmt: skip
    body = found[start + 32 :]
    if hashlib.sha256(body).digest() != found[start : start + 32]:
        fail(
            FileError, "path", f"{path}, whose checksum is wrong", "the bytes that were written",
            "make it again: it is cut off or damaged",
        )  # fmt: skip
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        fail(
            FileError, "path", f"{path} ({str(error).splitlines()[0][:80]})",
            "tensors and plain values", "make it again",
        )  # fmt: skip
    return content


def save(memory: Any, path: str | Path) -> Path:
    """Save a memory (anything with `state()`)."""
    return write(path, {"memory": type(memory).__name__, "state": memory.state()})


def load(memory: Any, path: str | Path) -> Any:
    """Load into a memory made as the one that was saved; give it.

    >>> import tempfile
    >>> from regard.memories import Kept
    >>> memory = Kept(); memory.extend(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    >>> place = save(memory, Path(tempfile.mkdtemp()) / "keys")
    >>> load(Kept(), place).seen
    3
    """
    content = read(path)
    kind = type(memory).__name__
    if content.get("memory") != kind:
        fail(
            FileError, "path", f"{path}, which holds a {content.get('memory')}", f"a {kind}",
            "load it into a memory of its own kind",
        )  # fmt: skip
    memory.restore(content["state"])
    return memory


__all__ = ["FileError", "load", "read", "save", "write"]
