"""The record of a run: one JSON file, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regard.core.errors import RegardError, fail

FORMAT, VERSION = "regard-bench", 1


class BenchError(RegardError):
    """A file of a sweep cannot be read or written."""


@dataclass(frozen=True)
class Run:
    """What one run trains: a layer, on a task, in a pattern, from a seed, in a backbone.

    One of `seconds`, `flops` and `steps` ends it. `dim` is the width.
    """

    layer: str
    task: str
    pattern: str
    seed: int
    dim: int = 64
    heads: int = 4
    depth: int = 2
    positions: str = "sinusoidal"
    batch: int = 64
    rate: float = 2e-3
    seconds: float | None = None
    flops: float | None = None
    steps: int | None = None

    @property
    def key(self) -> str:
        """Name the run: readable, and different where any setting is.

        >>> Run("mha", "copy", "cs", 0).key.startswith("mha-copy-cs-0-")
        True
        """
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        plain = re.sub(r"[^A-Za-z0-9=._]+", "-", f"{self.layer}-{self.task}")
        return f"{plain}-{self.pattern}-{self.seed}-{digest}"


def record_path(folder: Path, run: Run) -> Path:
    """Where the record of a run stands in the folder of a sweep."""
    return folder / "runs" / f"{run.key}.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            json.dump(_finite(content), file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())

    replaced(path, write)


def _finite(content: Any) -> Any:
    """Write what is no number as null: JSON has no word for it."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(x) for key, x in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(x) for x in content]
    return content


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, and put it there in one step."""
    with told_of_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            write(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def told_of_disk(path: Path) -> Iterator[None]:
    """Say in one sentence that a disk is full, or that a folder may not be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save says a full disk as a RuntimeError of its writer.
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if isinstance(error, RuntimeError) and not full and "write" not in str(error):
            raise
        said = "no space left on its disk" if full else str(error)
        fail(
            BenchError, str(path), said, "room to write to",
            "make room, and give the same command again: finished runs are kept"
            if full else "choose another --out, or its permissions",
        )  # fmt: skip


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as broken:
        fail(
            BenchError, str(path), f"a file that cannot be read ({broken})", "the record of a run",
            "delete it, and give the same command again",
        )  # fmt: skip
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        fail(
            BenchError, str(path), "JSON that is no record of a run", f"format {FORMAT!r}",
            "keep other files out of the folder `runs`",
        )  # fmt: skip
    if record.get("version") != VERSION:
        fail(
            BenchError, str(path), f"a record of version {record.get('version')}",
            f"version {VERSION}", "choose another --out, or use the Regard that wrote it",
        )  # fmt: skip
    return record


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Read every record in the folder of a sweep, by name."""
    paths = sorted(p for p in (folder / "runs").glob("*.json") if not p.name.startswith("."))
    return [read_record(path) for path in paths]
