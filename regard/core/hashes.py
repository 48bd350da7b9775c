"""Hashes of the inputs of a result, which tell whether it is still valid.

A result carries the hashes of what it depends on (a model, its config, code, text, settings); its
readers compare them, and do not trust names and dates.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from regard.core.files import disk_errors, need_plain
from regard.core.packing import pack

PACKAGE = Path(__file__).resolve().parents[1]
# Folders whose code changes what a layer learns or what a model says; words and pages do not.
MEASURED = (
    "core", "run", "layers", "memories", "models", "policies", "probes", "conversions", "tasks",
    "bench", "verbs.py",
)  # fmt: skip


def hash_of(content: Any) -> str:
    """Hash tensors and plain values by content: 32 hex digits.

    >>> hash_of({"keep": 0.5}) == hash_of({"keep": 0.5}), hash_of(["a"]) == hash_of(["b"])
    (True, False)
    """
    digest = hashlib.sha256()
    for part in pack(content):
        digest.update(part)
    return digest.hexdigest()[:32]


def hash_of_file(path: str | Path) -> str:
    """Hash a file by its bytes, a block at a time: 32 hex digits."""
    with disk_errors(Path(path)), open(need_plain(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


@cache
def hash_of_code(places: tuple[str, ...] = MEASURED) -> str:
    """Hash the source of folders and files of the package: 32 hex digits.

    A comment counts as a change: measuring again is cheaper than trusting a stale result.

    >>> hash_of_code(("core",)) == hash_of_code(("core", "run"))
    False
    """
    digest = hashlib.sha256()
    for place in places:
        found = PACKAGE / place
        for path in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            body = path.read_bytes()
            name = path.relative_to(PACKAGE).as_posix()
            digest.update(f"{name} {len(body)}\n".encode() + body)
    return digest.hexdigest()[:32]


def hash_of_modules(modules: Iterable[str]) -> str:
    """Hash the source of modules that lie outside of the package, by their names."""
    digest = hashlib.sha256()
    for name in sorted(set(modules)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.partition(".")[0] != "regard" and file is not None:
            digest.update(f"{name} {hash_of_file(file)}\n".encode())
    return digest.hexdigest()[:32]
