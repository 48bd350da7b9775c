"""Load every claim once, before a test swaps the registry for an empty one.

A module is imported once in a process: were it first imported under a swapped registry, its claims
would be lost to the tests after.
"""

import pytest

from regard.papers import checks, standing


@pytest.fixture(scope="session", autouse=True)
def _claims_are_loaded() -> None:
    standing.discover()
    checks.checks()
