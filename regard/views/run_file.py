"""The run file: what was seen, as arrays and a manifest that anyone can read.

`NAME.npz` is the run: arrays, and the manifest as `manifest.json` among them, so that it is always
of one look. `NAME.json` is the manifest once more, for programs that need no arrays. The names and
meanings are in docs/run-file.md; `version` grows when one of them changes.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regard.core.files import (
    OF_ANOTHER,
    FileError,
    FileKind,
    json_bytes,
    locked,
    parse_json,
    read_bytes,
    reading,
    refuse_to_replace,
    write_bytes,
)

FORMAT, VERSION = "regard-run", 2
# Bytes that the arrays of a run may have, unless its reader says otherwise.
LIMIT = 1 << 30
# The last bytes of the archive are a comment: these words, and the SHA-256 of all before the hash.
_SEAL = b"regard-run sha256 "


class RunFileError(FileError):
    """A file is no run, or a damaged one."""


RUN = FileKind(
    FORMAT, VERSION, "a run (NAME.npz), as Run.save writes it",
    "name a run that `regard see --out` has written, or look again", RunFileError,
)  # fmt: skip


@dataclass
class Run:
    """One look at a model: a manifest of plain values, and arrays by name.

    >>> Run({"title": "empty"}, {}).manifest["format"]
    'regard-run'
    """

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(repr=False)

    def __post_init__(self) -> None:
        self.manifest = {**self.manifest, "format": FORMAT, "version": VERSION}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write NAME.npz, and the manifest as NAME.json; return the path of the arrays.

        A run of the same model and inputs that is there is replaced, anything else only where
        `overwrite` is true.
        """
        arrays, manifest = _paths(path)
        text = json_bytes(self.manifest, RUN)
        body = _archive(self.arrays, text)
        with locked(arrays):  # so that both files are of one run where two processes write
            for place in (arrays, manifest):
                if overwrite or not place.exists():
                    continue
                if not is_run(place):
                    refuse_to_replace(place, RunFileError)
                if origin_at(place) != self.origin:
                    refuse_to_replace(place, RunFileError, OF_ANOTHER)
            write_bytes(arrays, body, error=RunFileError)
            write_bytes(manifest, text, error=RunFileError)
        return arrays

    @property
    def origin(self) -> str:
        """A word for what the run was made from: its model and inputs, or two runs."""
        return _origin(self.manifest)

    @classmethod
    def load(cls, path: str | Path, *, limit: int = LIMIT) -> Run:
        """Read what `save` wrote, by either name; its arrays may have up to `limit` bytes."""
        path = _paths(path)[0]
        with reading(path, RUN):
            body = read_bytes(path, limit)
            _check_seal(path, body)
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                manifest, arrays = _unpacked(path, archive, limit)
        return cls(manifest, arrays)


def origin_at(path: Path) -> str:
    """Return the `origin` of a run file, or of its manifest, without reading its arrays."""
    with reading(path, RUN):
        body = read_bytes(path)
        if path.suffix != ".json":
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                body = archive.read("manifest.json")
        return _origin(parse_json(body, path, RUN))


def _origin(manifest: dict[str, Any]) -> str:
    said = [manifest.get("made_from"), manifest.get("compare")]
    return hashlib.sha256(json_bytes({"of": said}, RUN)).hexdigest()[:16]


def is_run(path: Path) -> bool:
    """Return whether a file is a run, or the manifest of one, just as Regard wrote it."""
    try:
        with reading(path, RUN):
            body = read_bytes(path)
            if path.suffix == ".json":
                parse_json(body, path, RUN)
            else:
                _check_seal(path, body)
    except RunFileError:
        return False
    return True


def _paths(path: str | Path) -> tuple[Path, Path]:
    """Return NAME.npz and NAME.json. A name may have dots: Qwen3-0.6B is a name."""
    path = Path(path)
    name = path.stem if path.suffix in (".npz", ".json") else path.name
    return path.with_name(f"{name}.npz"), path.with_name(f"{name}.json")


def _archive(arrays: dict[str, np.ndarray], manifest: bytes) -> bytes:
    """Write arrays as `numpy.savez_compressed` does, the manifest among them, and a seal."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", manifest)
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(x), allow_pickle=False)
        archive.comment = _SEAL + b"0" * 64
    body = held.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def _check_seal(path: Path, body: bytes) -> None:
    if not body.startswith(b"PK"):
        RUN.bad(path, "a damaged file (it begins otherwise)")
    if not body[:-64].endswith(_SEAL):
        RUN.bad(path, "a damaged file (cut off), or one that Regard did not write")
    if hashlib.sha256(body[:-64]).hexdigest().encode() != body[-64:]:
        RUN.bad(path, "a damaged file (its checksum is wrong)")


def _unpacked(
    path: Path, archive: zipfile.ZipFile, limit: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the members, none of which can be larger than it says that it is."""
    size = sum(member.file_size for member in archive.infolist())
    if size > limit:
        RUN.bad(path, f"{size:,} bytes of arrays, where up to {limit:,} are read (limit=)")
    manifest = parse_json(archive.read("manifest.json"), path, RUN)
    arrays = {}
    for member in archive.infolist():
        if member.filename != "manifest.json":
            arrays[member.filename.removesuffix(".npy")] = _array(archive.read(member))
    return manifest, arrays


def _array(body: bytes) -> np.ndarray:
    """Read an array of numbers; its header allocates nothing that did not come."""
    file = io.BytesIO(body)
    major = np.lib.format.read_magic(file)[0]
    headers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = headers[major](file)
    left = len(body) - file.tell()
    if (
        dtype.kind not in "biufc"
        or math.prod(shape) * dtype.itemsize != left
        or min(shape, default=0) < 0
    ):
        raise ValueError(f"an array {list(shape)} of {dtype} in {left:,} bytes")
    flat = np.frombuffer(body, dtype, offset=file.tell()) if left else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy()
