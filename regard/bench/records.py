"""Files of a sweep: the settings of each run, its results, and hashes of its inputs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regard.bench.specs import read_spec, task_of
from regard.core.files import (
    FileError,
    FileKind,
    begins_as_ours,
    read_json,
    reading,
    set_aside,
    write_json,
)
from regard.core.hashes import hash_of_code, hash_of_modules
from regard.layers.registry import get


class BenchError(FileError):
    """A file of a sweep cannot be read or written."""


_AGAIN = "delete it, and give the same command again"
RECORD = FileKind("regard-bench", 2, "the record of a run", _AGAIN, BenchError)
SWEEP = FileKind("regard-bench-sweep", 2, "the plan of a sweep", _AGAIN, BenchError)
SPEED = FileKind("regard-bench-speed", 2, "measured speeds", _AGAIN, BenchError)
RESULTS = FileKind("regard-bench-results", 2, "the results of a sweep", _AGAIN, BenchError)
# The state from which a killed run resumes.
BEGUN = FileKind("regard-bench-begun", 2, "an interrupted run", _AGAIN, BenchError)


@dataclass(frozen=True)
class TrainingRun:
    """The settings of one run: a layer, a task, a pattern, a seed, and the backbone.

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
        """A readable name of the run, different if any setting is.

        >>> TrainingRun("mha", "copy", "cs", 0).key.startswith("mha-copy-cs-0-")
        True
        """
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        plain = re.sub(r"[^A-Za-z0-9=._]+", "-", f"{self.layer}-{self.task}")
        return f"{plain}-{self.pattern}-{self.seed}-{digest}"


def record_path(folder: Path, run: TrainingRun) -> Path:
    """Return the path of the record of a run in the folder of a sweep."""
    return folder / "runs" / f"{run.key}.json"


def inputs_of(run: TrainingRun, device: str = "cpu") -> dict[str, str]:
    """Hash what the numbers of a run depend on beside its settings: code and device.

    `layer` is the code of a layer and a task defined outside of the package.
    """
    own = [get(read_spec(run.layer)[0]).__module__, type(task_of(run.task)).__module__]
    return {"code": hash_of_code(), "layer": hash_of_modules(own), "device": device}


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run."""
    record = read_json(path, RECORD)
    with reading(path, RECORD):
        TrainingRun(**record["run"])
        if not isinstance(record["tests"], dict) or not isinstance(record["inputs"], dict):
            RECORD.bad(path, "a record without tests or inputs")
        for name in ("key", "score", "chance", "curve", "steps", "machine"):
            record[name]
    return record


def kept_record(folder: Path, run: TrainingRun, device: str = "cpu") -> dict[str, Any] | None:
    """Read the record of a run if it is of the same settings, code and device, else None."""
    path = record_path(folder, run)
    if not path.exists():
        return None
    record = read_record(path)
    same = record["run"] == asdict(run) and record["inputs"] == inputs_of(run, device)
    return record if same else None


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Read every record in the folder of a sweep, sorted by name."""
    paths = sorted(p for p in (folder / "runs").glob("*.json") if not p.name.startswith("."))
    return [read_record(path) for path in paths]


def write_speed(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write measured speeds, with their settings and code; others are moved to `older/`."""
    if begins_as_ours(path) and not _speed_is_of(path, settings):
        set_aside(path)
    write_json(path, {"settings": settings, "code": hash_of_code(), "rows": rows}, SPEED)


def read_speed(path: Path) -> dict[str, Any]:
    """Read speeds as they were written: `settings`, `code`, and `rows` of measurements."""
    said = read_json(path, SPEED)
    with reading(path, SPEED):
        return {"settings": said["settings"], "code": said["code"], "rows": list(said["rows"])}


def kept_speed(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Read the rows of speeds if they are of the same settings and code, else None."""
    said = read_speed(path) if path.exists() else None
    same = said is not None and said["settings"] == settings and said["code"] == hash_of_code()
    return said["rows"] if said is not None and same else None


def _speed_is_of(path: Path, settings: dict[str, Any]) -> bool:
    try:
        return kept_speed(path, settings) is not None
    except BenchError:
        return False
