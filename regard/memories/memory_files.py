"""Save and load memories: files are written completely or not at all, and checked on loading."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from regard.core.files import FileError, FileKind, read_packed, reading, write_packed
from regard.memories.base import KeyMemory, need_keys

MEMORY = FileKind("regard-memory", 2, "a memory that `save` wrote", "save it again")
# Which memory is which, in this process and when it is loaded in another.
_NAMES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def save(memory: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Save a memory (anything with `state()`).

    What was saved of this memory before is replaced, anything else only where `overwrite` is true.
    """
    name = _NAMES.setdefault(memory, uuid.uuid4().hex)
    content = {"memory": type(memory).__name__, "name": name, "state": memory.state()}

    def may_replace(there: Path) -> bool:
        if overwrite:
            return True
        with contextlib.suppress(FileError):
            return bool(read_packed(there, MEMORY).get("name") == name)
        return False

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
        _NAMES[memory] = str(content.get("name"))
        if isinstance(memory, KeyMemory) and memory.seen != 0:
            held = memory.read()
            need_keys(held.k, held.v, None)  # fail here rather than later
    return memory
