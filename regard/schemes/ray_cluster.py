"""Start a process group over the machines of a Ray cluster, and collect its results.

Machines need Regard and torch, but no shared folder. The ranks meet at a store of rank 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from regard.core.errors import ValueRangeError, fail, need
from regard.schemes.local_processes import LaunchError, culprit, function_of, is_aftermath

# Once a rank fails, the others have so many seconds to notice.
GRACE = 10.0


def results_on_ray(
    world: int,
    target: str,
    *args: Any,
    gpus_each: float = 0,
    timeout: float = 300.0,
    message_timeout: float = 60.0,
) -> list[Any]:
    """Run `target(*args)` in `world` ranks of a cluster, and return what each returned.

    The cluster is the one that RAY_ADDRESS names, or one on this machine. `target` is
    "module:function", to be imported there; every rank has a core, and `gpus_each` GPUs (NCCL in
    place of gloo). A rank that raises, dies or is silent ends all, and the error names it.
    """
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        fail(ValueRangeError, "world", repr(world), "a whole number of at least 1", "count ranks")
    ray = need("ray", "ray", "starts ranks on several machines")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    each = {"CPU": 1.0, **({"GPU": float(gpus_each)} if gpus_each else {})}
    _need_room(world, each, ray.cluster_resources())
    group = ray.util.placement_group([each] * world, strategy="PACK")
    ranks: list[Any] = []
    try:
        until = time.monotonic() + timeout
        if not group.wait(timeout):
            fail(
                LaunchError, "the cluster", f"no room for {world} ranks in {timeout:g} s",
                f"{each} for each", "wait until other work is done, or ask for fewer ranks",
            )  # fmt: skip
        place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        for rank in range(world):
            kind = ray.remote(
                num_cpus=1, num_gpus=gpus_each, scheduling_strategy=place(group, rank)
            )(_Rank)
            ranks.append(kind.remote(rank, world, message_timeout, bool(gpus_each)))
        (where,) = _gather(ray, {ranks[0].serve.remote(): 0}, until, timeout)
        waiting = {one.run.remote(where, target, args): rank for rank, one in enumerate(ranks)}
        return _gather(ray, waiting, until, timeout)
    finally:
        for one in ranks:
            ray.kill(one)
        ray.util.remove_placement_group(group)


def _need_room(world: int, each: Mapping[str, float], has: Mapping[str, float]) -> None:
    for name, count in each.items():
        if has.get(name, 0.0) < count * world:
            fail(
                LaunchError, "the cluster", f"{has.get(name, 0.0):g} {name}",
                f"{count * world:g} {name} for {world} ranks", "start more machines, or fewer",
            )  # fmt: skip


def _gather(ray: Any, waiting: dict[Any, int], until: float, timeout: float) -> list[Any]:
    """Return the results in the order of the ranks; the first failure ends all.

    A rank that is gone may be told of after those whose messages it broke: they are waited for.
    """
    found: dict[int, Any] = {}
    failed: dict[int, tuple[bool, str]] = {}
    while waiting and all(is_aftermath(said) and not died for died, said in failed.values()):
        left = max(0.0, until - time.monotonic())
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        if not done:
            break
        rank = waiting.pop(done[0])
        try:
            found[rank] = ray.get(done[0])
            continue
        except ray.exceptions.RayTaskError as error:
            failed[rank] = False, f"it raised {type(error.cause).__name__}: {error.cause}"
        except ray.exceptions.RayError as error:
            failed[rank] = True, f"it died: {str(error).splitlines()[0]}"
        until = min(until, time.monotonic() + GRACE)
    if failed:
        rank = culprit(failed)
        fail(
            LaunchError, f"rank {rank}", failed[rank][1], "an end without an error",
            "run it with one process first",
        )  # fmt: skip
    if waiting:
        fail(
            LaunchError, f"ranks {sorted(waiting.values())}", f"silent for {timeout:g} s",
            "results in time", "run it with one process first",
        )  # fmt: skip
    return [found[rank] for rank in sorted(found)]


class _Rank:
    """One rank: an actor of Ray, in a process of its own."""

    def __init__(self, rank: int, world: int, seconds: float, gpu: bool) -> None:
        self.rank, self.world, self.gpu = rank, world, gpu
        self.limit = timedelta(seconds=seconds)
        self.store: Any = None

    def serve(self) -> tuple[str, int]:
        """Open the store where the ranks meet; return where it is."""
        ray: Any = need("ray", "ray", "starts ranks on several machines")
        host = ray.util.get_node_ip_address()
        self._meet(host, 0, opens=True)
        return host, self.store.port

    def _meet(self, host: str, port: int, *, opens: bool) -> None:
        from torch import distributed as dist

        kind = dist.TCPStore  # type: ignore[attr-defined]  # torch has it, and does not list it
        self.store = kind(host, port, self.world, opens, self.limit, wait_for_workers=False)

    def run(self, where: tuple[str, int], target: str, args: Sequence[Any]) -> Any:
        """Join the group, and run the function."""
        import torch
        from torch import distributed as dist

        if self.store is None:
            self._meet(*where, opens=False)
        if not self.gpu:
            torch.set_num_threads(1)
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world))
        dist.init_process_group(
            "nccl" if self.gpu else "gloo", store=self.store, rank=self.rank,
            world_size=self.world, timeout=self.limit,
        )  # fmt: skip
        return function_of(target)(*args)


__all__ = ["results_on_ray"]
