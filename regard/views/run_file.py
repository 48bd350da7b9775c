"""The run file: what was seen, as arrays and a manifest that anyone can read.

`NAME.npz` holds the arrays, `NAME.json` the manifest. Their names and meanings are in
docs/run-file.md; `version` grows when one of them changes.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regard.core.errors import RegardError, fail

FORMAT, VERSION = "regard-run", 1


class RunFileError(RegardError):
    """A file is no run, or a damaged one."""


@dataclass
class Run:
    """One look at a model: a manifest of plain values, and arrays by name.

    >>> Run({"title": "empty"}, {}).manifest["format"]
    'regard-run'
    """

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(repr=False)

    def __post_init__(self) -> None:
        self.manifest = {"format": FORMAT, "version": VERSION, **self.manifest}

    def save(self, path: str | Path) -> Path:
        """Write NAME.npz and NAME.json; give the path of the arrays."""
        path = Path(path).with_suffix(".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".npz.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **self.arrays)  # type: ignore[arg-type]
        text = json.dumps(self.manifest, ensure_ascii=False, indent=1)
        path.with_suffix(".json").write_text(text, encoding="utf-8")
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read what `save` wrote, by either name."""
        path = Path(path)
        try:
            manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
                _wrong(path, "JSON that is no run of Regard")
            if manifest.get("version") != VERSION:
                fail(
                    RunFileError, str(path.with_suffix(".json")),
                    f"a run of version {manifest.get('version')}", f"version {VERSION}",
                    "look again with this Regard, or read it with the one that wrote it",
                )  # fmt: skip
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError as missing:
            _wrong(Path(missing.filename), "no such file")
        except (json.JSONDecodeError, zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            _wrong(path, f"a damaged file ({error})")
        return cls(manifest, arrays)


def _wrong(path: Path, what: str) -> None:
    fail(
        RunFileError, str(path), what, "NAME.npz beside NAME.json, as Run.save writes them",
        "name a run that `regard see --out` has written",
    )  # fmt: skip


__all__ = ["FORMAT", "VERSION", "Run", "RunFileError"]
