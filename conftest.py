"""What must be so before any module of the package, or any test or example, runs."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

# Subclasses of vLLM's, imported by vLLM alone: no examples to collect where it is not installed.
OF_VLLM = ["regard/serving/vllm/backend.py", "regard/serving/vllm/cpu_backend.py"]
collect_ignore = [] if find_spec("vllm") else OF_VLLM

# Kernels run in Triton's interpreter where there is no GPU; Triton reads this on import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under pytest-xdist every core already has a process of its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer a random order, to be repeated by its seed."""
    parser.addoption(
        "--order-seed",
        type=int,
        help="run files, and the tests of each, in the random order of this seed",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which order it is."""
    seed = config.getoption("--order-seed")
    return [] if seed is None else [f"order: --order-seed={seed}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests in that order; those of one file stay together, with its fixtures."""
    seed = config.getoption("--order-seed")
    if seed is None:
        return
    from tests.orders import in_order

    items[:] = in_order(items, seed)


@pytest.fixture(autouse=True)
def _examples_have_torch(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed a test by its name, and fail the one that leaves something to those after it."""
    from tests.leftovers import Leftovers, put_back, seed_all, seed_of

    seed_all(seed_of(request.node.nodeid))
    before = Leftovers()
    if isinstance(request.node, pytest.DoctestItem):
        with put_back():  # an example may claim a row of the catalogue, or register a name
            yield
    else:
        yield
    left = before.found()
    if left:
        pytest.fail(f"this test has left to those after it: {', '.join(left)}", pytrace=False)
