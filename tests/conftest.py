"""Hypothesis profiles, and the seed that every random input of a run comes from."""

import os
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.leftovers import seed_of

FUZZ = int(os.environ.get("REGARD_FUZZ_CASES", "10000"))
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
for _name, _examples in (("quick", 25), ("ci", 40), ("nightly", 2_000), ("fuzz", FUZZ)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=_SLOW,
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Set once by the controlling process, so that the workers of pytest-xdist inherit it.
RUN_SEED = int(
    os.environ.setdefault("REGARD_TEST_SEED", str(random.SystemRandom().getrandbits(31)))
)


def pytest_report_header() -> list[str]:
    return [
        f"seed: REGARD_TEST_SEED={RUN_SEED} (set it to repeat this run)",
        f"hypothesis: HYPOTHESIS_PROFILE={os.environ.get('HYPOTHESIS_PROFILE', 'ci')}"
        f" ({settings().max_examples} examples)",
        f"torch {torch.__version__}, cuda {torch.cuda.is_available()},"
        f" TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET', 'unset')}",
    ]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Seed for one test: different each run and each test, the same in every order of tests.

    `torch` is seeded with it as well.
    """
    mixed = seed_of(request.node.nodeid)
    torch.manual_seed(mixed)
    return mixed


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray of this process, with two nodes: never one that another process has started."""
    import ray
    from ray.cluster_utils import Cluster

    # Ray makes its workers nice: beside other tests they would hardly run.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # the name that Ray reads
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_worker_niceness"]  # noqa: SIM112
