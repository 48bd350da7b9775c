"""Which layers are tried: all that are registered, or those named with `--layer`."""

from __future__ import annotations

import pytest

from regard.conformance.cases import cases_of
from regard.layers import registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each law its cases: `case` one layer in one mode, `kind` one layer."""
    chosen = metafunc.config.getoption("--layer") or registry.names()
    if "case" in metafunc.fixturenames:
        cases = [case for name in chosen for case in cases_of(name)]
        metafunc.parametrize("case", cases, ids=str)
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", [registry.get(name) for name in chosen], ids=chosen)
