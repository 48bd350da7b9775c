"""What must be so before any module of the package, or any test or example, runs."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Kernels run in Triton's interpreter where there is no GPU; Triton reads this on import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under pytest-xdist every core already has a process of its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _examples_have_torch(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture(autouse=True)
def _claims_of_examples_end_with_them(request: pytest.FixtureRequest) -> Iterator[None]:
    """An example may claim a row of the catalogue; the tests after it must not see that."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    from regard.core import method

    before = {key: dict(claims) for key, claims in method._claims.items()}
    yield
    method._claims.clear()
    method._claims.update(before)
