"""The supported versions of the hooked libraries, in one place."""

from __future__ import annotations

import importlib
from types import ModuleType

from regard.core.errors import VersionError, fail

# From this version (included) to that one (excluded).
RANGES: dict[str, tuple[str, str]] = {
    "transformers": ("5.17", "5.24"),
    "diffusers": ("0.35.2", "0.43"),
}


def numbers(version: str) -> tuple[int, ...]:
    """Read the leading numbers of a version.

    >>> numbers("5.23.0.dev1")
    (5, 23, 0)
    """
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def supported(name: str, module: ModuleType | None = None) -> ModuleType:
    """Import a library; raise if its version is not supported."""
    module = importlib.import_module(name) if module is None else module
    low, high = RANGES[name]
    have = getattr(module, "__version__", "0")
    if not numbers(low) <= numbers(have) < numbers(high):
        fail(
            VersionError,
            name,
            f"version {have}",
            f"{name}>={low},<{high}",
            f"pip install '{name}>={low},<{high}'",
        )
    return module
