"""One run: train a layer in the backbone on a task within its budget, and score it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard import __version__
from regard.bench.backbone import Backbone, parameters
from regard.bench.measuring import Largest, machine
from regard.bench.records import BEGUN, TrainingRun, inputs_of
from regard.bench.specs import task_of
from regard.core.files import FileError, read_packed, reading, write_packed
from regard.tasks import Task

# Test batches, whose spread gives the error of a score, and rows in each.
TEST_BATCHES, TEST_ROWS, CURVE_POINTS = 8, 64, 16
KEEP_EVERY = 20.0  # seconds between checkpoints
# Test batches use seeds that no training step reaches.
TEST_SEED = 2**40

Told = Callable[[float, "Progress"], None]


@dataclass
class Progress:
    """The progress of a run, part of its checkpoint."""

    step: int = 0
    trained: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)


def seed_of(seed: int, step: int) -> int:
    """Return the seed of a batch, the same for every layer, so that all see the same data."""
    return (seed * 1_000_003 + step) % 2**39


def scored(model: nn.Module, task: Task, device: Any, batches: int = TEST_BATCHES) -> list[float]:
    """Score a model on each of some unseen batches."""
    found = []
    model.eval()
    with torch.no_grad():
        for i in range(batches):
            batch = task.batch(TEST_ROWS, TEST_SEED + i).to(device)
            found.append(task.score(task.answers(model(batch)), batch))
    model.train()
    return found


def carry_out(
    run: TrainingRun, *, device: str = "cpu", kept: Path | None = None, told: Told | None = None
) -> dict[str, Any]:
    """Train and score, and return the record.

    `kept` is the path of the checkpoint; `told(share, progress)` is called during training with the
    share of the budget that is used.
    """
    task = task_of(run.task)
    torch.manual_seed(run.seed)
    model = Backbone(
        run.layer, task, run.pattern, dim=run.dim, heads=run.heads, depth=run.depth,
        positions=run.positions,
    ).to(device)  # fmt: skip
    adam = torch.optim.AdamW(model.parameters(), run.rate, weight_decay=0.01)
    flops, largest = cost_of_a_step(model, task, run, device)
    about = {"run": asdict(run), "inputs": inputs_of(run, device)}
    progress = _begin(kept, about, model, adam)
    steps = run.steps if run.flops is None else max(1, int(run.flops / max(flops, 1)))
    last = _train(run, task, model, adam, progress, steps, device, kept, about, told)
    tests = {}
    for name, test in task.tests().items():
        scores = scored(model, test, device)
        tests[name] = {
            "score": statistics.mean(scores),
            "error": statistics.stdev(scores) / math.sqrt(len(scores)),
            "chance": test.chance,
        }
    if kept is not None:
        kept.unlink(missing_ok=True)
    return {
        **about, "key": run.key,
        "score": tests[task.name]["score"], "chance": task.chance, "tests": tests,
        "curve": progress.curve, "loss": last, "steps": progress.step,
        "rows": progress.step * run.batch, "seconds": progress.trained,
        "parameters": parameters(model), "flops_a_step": flops, "flops": flops * progress.step,
        "largest_tensor": largest, "device": device,
        "diverged": not all(math.isfinite(x) for x in progress.losses[-20:]),
        "machine": {**machine(), "regard": __version__},
    }  # fmt: skip


def cost_of_a_step(model: nn.Module, task: Task, run: TrainingRun, device: str) -> tuple[int, int]:
    """Count the FLOPs of a step of training, forward and backward, and its largest tensor."""
    batch = task.batch(run.batch, seed_of(run.seed, 0)).to(device)
    state = torch.random.get_rng_state()
    with FlopCounterMode(display=False) as counter, Largest() as largest:
        task.loss(model(batch), batch).backward()
    model.zero_grad()
    torch.random.set_rng_state(state)
    return counter.get_total_flops(), largest.bytes


def _train(
    run: TrainingRun, task: Task, model: nn.Module, adam: torch.optim.Optimizer, progress: Progress,
    steps: int | None, device: str, kept: Path | None, about: dict[str, Any], told: Told | None,
) -> float:  # fmt: skip
    began = saved = time.perf_counter()
    held_out = next(iter(task.tests().values()))
    before, testing = progress.trained, 0.0
    loss = math.nan
    while True:
        progress.trained = before + time.perf_counter() - began - testing
        share = progress.step / steps if steps else progress.trained / max(run.seconds or 0, 1e-9)
        due = len(progress.curve) / CURVE_POINTS
        if share >= min(due, 1.0) or not progress.curve:
            paused = time.perf_counter()
            recent = progress.losses[-20:]
            progress.curve.append({
                "share": min(share, 1.0), "step": progress.step, "seconds": progress.trained,
                "loss": statistics.mean(recent) if recent else math.nan,
                "score": statistics.mean(scored(model, held_out, device, 2)),
            })  # fmt: skip
            testing += time.perf_counter() - paused
        if share >= 1.0:
            return loss
        for group in adam.param_groups:
            group["lr"] = run.rate * _rate(share)
        loss = step(model, task, run, adam, progress.step, device)
        progress.losses = [*progress.losses[-19:], loss]
        progress.step += 1
        if told is not None:
            told(min(share, 1.0), progress)
        if kept is not None and time.perf_counter() - saved > KEEP_EVERY:
            saved = time.perf_counter()
            progress.trained = before + saved - began - testing
            state = {"about": about, "progress": asdict(progress), "model": model.state_dict(),
                     "adam": adam.state_dict(), "random": torch.random.get_rng_state()}  # fmt: skip
            write_packed(kept, state, BEGUN)


def step(
    model: nn.Module, task: Task, run: TrainingRun, adam: torch.optim.Optimizer, number: int,
    device: str,
) -> float:  # fmt: skip
    """Run one step of training on the batch of that number; return the loss."""
    batch = task.batch(run.batch, seed_of(run.seed, number)).to(device)
    loss: Tensor = task.loss(model(batch), batch)
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    return float(loss.detach())


def _rate(share: float) -> float:
    """Return the learning-rate factor: warm-up for a twentieth, decay over the last third."""
    return min(1.0, share / 0.05 + 0.01, (1 - share) / 0.3)


def _begin(
    kept: Path | None, about: dict[str, Any], model: nn.Module, adam: torch.optim.Optimizer
) -> Progress:
    """Load the checkpoint of a killed run of the same settings, code and device, or begin."""
    if kept is None or not kept.exists():
        return Progress()
    begun = copy.deepcopy(model.state_dict())
    try:
        with reading(kept, BEGUN):
            state = read_packed(kept, BEGUN)
            if state["about"] != about:
                BEGUN.bad(kept, "what another run kept")
            progress = Progress(**state["progress"])
            adam.load_state_dict(state["adam"])
            model.load_state_dict(state["model"])
            torch.random.set_rng_state(state["random"])
        return progress
    except FileError:
        # Of other code, or damaged: begin again.
        model.load_state_dict(begun)
        adam.state.clear()
        return Progress()
