"""Ranks on a Ray cluster (a real one, two nodes on this machine) are ranks; ends are told."""

import pytest

from regard.core.errors import RegardError
from regard.schemes.local_processes import LaunchError
from regard.schemes.ray_cluster import results_on_ray

pytestmark = pytest.mark.usefixtures("ray_cluster")

RANKS = "tests.schemes.ray_ranks"


def test_ranks_equal_one_process():
    found = results_on_ray(3, f"{RANKS}:off", 101, message_timeout=500, timeout=500)
    assert [x[:2] for x in found] == [[0, 3], [1, 3], [2, 3]]
    assert max(x[2] for x in found) < 1e-12
    assert len({x[3] for x in found}) == 3, "processes of their own"


@pytest.mark.parametrize(
    ("how", "said"), [("refuses", "window.*a width above 0"), ("dies", "it died")]
)
def test_a_rank_that_fails_ends_all_and_is_named(how, said):
    with pytest.raises(LaunchError, match=f"rank 1.*{said}"):
        results_on_ray(2, f"{RANKS}:fails", how, message_timeout=500, timeout=500)


def test_a_rank_that_is_silent_is_named():
    with pytest.raises(LaunchError, match=r"ranks \[0.*silent for 15 s"):
        results_on_ray(2, f"{RANKS}:fails", "hangs", timeout=15)


@pytest.mark.parametrize(("world", "gpus"), [(64, 0), (1, 1), (0, 0), (1.5, 0)])
def test_what_the_cluster_has_not_is_refused(world, gpus):
    with pytest.raises(RegardError, match="Fix"):
        results_on_ray(world, f"{RANKS}:off", 8, gpus_each=gpus)
