"""Start ranks on a Ray cluster: processes on one machine or many, that find each other.

Nodes need Regard. Ray places the processes; messages between them are `torch.distributed`'s.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from regard.core.errors import fail, need
from regard.schemes.local_processes import LaunchError
from regard.schemes.messages import TIMEOUT


def results_on_ray(
    world: int, function: Callable[..., Any], *args: Any, cpus: float = 1, gpus: float = 0,
    timeout: float = 600.0,
) -> list[Any]:  # fmt: skip
    """Run `function(*args)` in `world` processes of one group, and return what each returned.

    The cluster is the one that RAY_ADDRESS names, or one that is made on this machine. Each process
    is given so many CPUs and GPUs, and is a rank of a gloo group, or of an NCCL group with GPUs.
    `timeout` is how many seconds all may take. The first rank that fails is named, and all others
    are stopped.

        from regard.schemes.demonstration import show
        from regard.schemes.on_ray_cluster import results_on_ray
        results_on_ray(2, show, "ring", "zigzag", 512, 8)
    """
    ray = need("ray", "ray", "starts ranks on several machines")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    far = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Rank)
    ranks = [far.remote() for _ in range(world)]
    try:
        try:
            address = ray.get([x.address.remote() for x in ranks], timeout=timeout)[0]
        except ray.exceptions.GetTimeoutError:
            fail(
                LaunchError, "ray", f"no room for {world} processes within {timeout:g} s",
                f"{world} times {cpus:g} CPUs and {gpus:g} GPUs",
                "ask for fewer, or look at `ray status`",
            )  # fmt: skip
        backend = "nccl" if gpus else "gloo"
        going = {
            x.run.remote(rank, world, address, backend, function, args): rank
            for rank, x in enumerate(ranks)
        }
        found: dict[int, Any] = {}
        while going:
            done, _ = ray.wait(list(going), num_returns=1, timeout=timeout)
            if not done:
                late = min(going.values())
                fail(
                    LaunchError, f"rank {late}", f"no end within {timeout:g} s", "a result",
                    "run it with one process first, or give it a longer timeout",
                )  # fmt: skip
            rank = going.pop(done[0])
            try:
                found[rank] = ray.get(done[0])
            except ray.exceptions.RayError as error:
                why = str(error).strip().splitlines()
                fail(
                    LaunchError, f"rank {rank}", f"an error: {why[-1] if why else error}",
                    "an end without an error", "run it with one process first",
                )  # fmt: skip
        return [found[rank] for rank in range(world)]
    finally:
        for x in ranks:
            ray.kill(x)


class _Rank:
    """One process of the cluster."""

    def address(self) -> tuple[str, int]:
        """Where this process can be found by the others: an address, and a port that is free."""
        ray = need("ray", "ray", "starts ranks on several machines")
        with socket.socket() as free:
            free.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(free.getsockname()[1])

    def run(
        self, rank: int, world: int, address: tuple[str, int], backend: str,
        function: Callable[..., Any], args: tuple[Any, ...],
    ) -> Any:  # fmt: skip
        """Join the group, and run."""
        from torch import distributed as dist

        host, port = address
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR=host, MASTER_PORT=str(port)
        )
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
        # After an error the group stays open until this process is stopped: were it closed, ranks
        # that wait for this one would fail too, and maybe be named in its place.
        made = function(*args)
        dist.destroy_process_group()
        return made


__all__ = ["results_on_ray"]
