"""Save and load memories: files are written completely or not at all, and checked on loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regard.core.files import FileError, FileKind, is_packed, read_packed, reading, write_packed
from regard.memories.base import KeyMemory, need_keys

MEMORY = FileKind("regard-memory", 2, "a memory that `save` wrote", "save it again")


def save(memory: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Save a memory (anything with `state()`).

    A memory that was saved there before is replaced, anything else only where `overwrite` is true.
    """
    content = {"memory": type(memory).__name__, "state": memory.state()}

    def may_replace(there: Path) -> bool:
        return overwrite or is_packed(there, MEMORY)

    return write_packed(path, content, MEMORY, may_replace=may_replace)


def load(memory: Any, path: str | Path) -> Any:
    """Load a file into a memory that was built like the saved one, and return it.

    >>> import tempfile
    >>> from regard.memories import Kept
    >>> memory = Kept(); memory.extend(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    >>> place = save(memory, Path(tempfile.mkdtemp()) / "keys")
    >>> load(Kept(), place).seen
    3
    """
    content, kind = read_packed(path, MEMORY), type(memory).__name__
    with reading(path, MEMORY):
        if content["memory"] != kind:
            raise FileError(
                str(path), f"a saved {content['memory']}", f"a saved {kind}",
                "load it into a memory of that class",
            )  # fmt: skip
        memory.restore(content["state"])
        if isinstance(memory, KeyMemory) and memory.seen != 0:
            held = memory.read()
            need_keys(held.k, held.v, None)  # fail here rather than later
    return memory
