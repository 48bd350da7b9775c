"""Ranks that Ray starts are ranks: a real cluster on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from regard.schemes.demonstration import show
from regard.schemes.local_processes import LaunchError
from regard.schemes.on_ray_cluster import results_on_ray

ray = pytest.importorskip("ray", reason="starts a Ray cluster, and ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


def fails(on: int) -> int:
    import torch.distributed as dist

    if dist.get_rank() == on:
        raise ValueError("an error of its own")
    dist.barrier()
    return dist.get_rank()


def test_a_model_over_ranks_of_a_cluster_is_that_of_one_process() -> None:
    found = results_on_ray(2, show, "ring", "zigzag", 64, 2)
    assert [one["rank"] for one in found] == [0, 1]
    for one in found:
        assert one["same tokens"]
        assert one["logits off by"] < 1e-4
        assert one["loss"] == pytest.approx(one["loss alone"], abs=1e-5)
        assert one["sent"] > 0


def test_a_rank_that_fails_is_named_and_the_others_are_stopped() -> None:
    with pytest.raises(LaunchError, match=r"rank 1.*an error of its own"):
        results_on_ray(2, fails, 1)
    # Its processors are free again.
    assert results_on_ray(2, fails, -1) == [0, 1]
