"""Scripts and benchmarks of the repository as modules; a source distribution has none of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(path: str) -> Any:
    """Import a file of the repository that is in no package, "scripts/fuzz.py" say."""
    place = ROOT / path
    if not place.is_file():
        pytest.skip("a source distribution has no scripts", allow_module_level=True)
    spec = importlib.util.spec_from_file_location("_".join(place.with_suffix("").parts[-2:]), place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module
