"""Add `--layer` to pytest, so that the laws can be tried on a layer of any package."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add the option."""
    parser.addoption(
        "--layer", action="append", default=[],
        help="for --pyargs regard.conformance: try only this layer, a registered name or "
        "package.module:Class (repeatable)",
    )  # fmt: skip
