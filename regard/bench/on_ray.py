"""A sweep on a Ray cluster: nodes train, and this machine keeps the results.

Nodes need Regard, but no shared folder. Ray repeats the runs of a lost node.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regard.bench.records import RECORD, TrainingRun, kept_record, record_path
from regard.bench.run_locks import claim
from regard.bench.sweep import News, SweepPlan, keep_plan
from regard.bench.training import carry_out
from regard.core.errors import need
from regard.core.files import set_aside, write_json


def carry_out_on_ray(plan: SweepPlan, folder: Path, *, device: str = "cpu") -> Iterator[News]:
    """Do the rest of a plan on the cluster that RAY_ADDRESS names, or on a local one."""
    keep_plan(plan, folder)
    ray = need("ray", "ray", "spreads a sweep over machines")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    gpus = 1 if device.startswith("cuda") else 0
    far = ray.remote(num_cpus=1, num_gpus=gpus)(_far)
    going: dict[Any, tuple[TrainingRun, Any]] = {}
    for run in plan.runs:
        record = kept_record(folder, run, device)
        if record is not None:
            yield News(run.key, "kept", 1.0, record["score"])
            continue
        ours = claim(folder / "claims", run.key)
        if ours is not None:
            going[far.remote(run, device)] = run, ours
            yield News(run.key, "started")
    try:
        while going:
            done, _ = ray.wait(list(going), num_returns=1, timeout=30)
            for _, ours in going.values():
                ours.touch()
            if not done:
                continue
            run, ours = going.pop(done[0])
            try:
                record = ray.get(done[0])
            except ray.exceptions.RayError as error:
                yield News(run.key, "broke", trace=str(error))
            else:
                if record_path(folder, run).exists():
                    set_aside(record_path(folder, run))
                write_json(record_path(folder, run), record, RECORD)
                yield News(run.key, "done", 1.0, record["score"])
            ours.release()
    finally:
        for _, ours in going.values():
            ours.release()


def _far(run: TrainingRun, device: str) -> dict[str, Any]:
    """Train on another machine, on one core as the processes of a sweep do."""
    import torch

    torch.set_num_threads(1)
    return carry_out(run, device=device)
