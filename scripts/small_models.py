"""What the scripts that train the models in `regard/demo` share: optimizers, a loop and a card."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def optimizers(
    model: nn.Module, hidden: Callable[[str], bool], muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices whose names are `hidden`, AdamW for all other parameters."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and hidden(name)]
    taken = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(inside, lr=muon_rate, weight_decay=0.01, momentum=0.95,
                         adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]  # fmt: skip


def rate(step: int, steps: int, warm_up: int, cool_down: float) -> float:
    """Return the share of the full learning rate: warm up, stay, fall to nothing.

    >>> [rate(x, 100, 10, 0.5) for x in (4, 30, 75)]
    [0.5, 1.0, 0.5]
    """
    return min(1.0, (step + 1) / warm_up, max(0.0, (steps - step) / (cool_down * steps)))


def train(
    model: nn.Module,
    steppers: Sequence[torch.optim.Optimizer],
    loss_of: Callable[[int], Tensor],
    share: Callable[[int], float],
    out: Path,
    stop_at: int,
    *,
    log_every: int = 50,
    save_every: int = 50,
    mean: nn.Module | None = None,
    keep: Callable[[int], float] | None = None,
) -> None:
    """Train up to a step, from the checkpoint in `out` if there is one.

    `loss_of` depends on the step alone, so that a run that was killed resumes; `share` is the
    share of the full learning rate. `mean` is a running mean of the weights, which keeps `keep` of
    itself at each step. `log.jsonl` has the mean loss since the line before, and the seconds.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = {"model": model} if mean is None else {"model": model, "mean": mean}
    bases = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    checkpoint, done, used, waited = out / "checkpoint.pt", 0, 0.0, 0.0
    if checkpoint.exists():
        device = next(model.parameters()).device
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        for stepper, state in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(state)
        done, used, waited = saved["step"], saved["cpu_seconds"], saved["seconds"]
    cpu, clock, losses = time.process_time() - used, time.perf_counter() - waited, []
    with (out / "log.jsonl").open("a") as log:
        for step in range(done, stop_at):
            loss = loss_of(step)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base * share(step)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            if mean is not None and keep is not None:
                with torch.no_grad():
                    for old, new in zip(mean.parameters(), model.parameters(), strict=True):
                        old.lerp_(new, 1 - keep(step))
            losses.append(loss.item())
            last = step + 1 == stop_at
            spent = {"cpu_seconds": time.process_time() - cpu,
                     "seconds": time.perf_counter() - clock}  # fmt: skip
            if (step + 1) % log_every == 0 or last:
                line = {"step": step + 1, "loss": round(sum(losses) / len(losses), 4),
                        **{name: round(x, 1) for name, x in spent.items()}}  # fmt: skip
                losses = []
                print(json.dumps(line), file=log, flush=True)
            if (step + 1) % save_every == 0 or last:
                state = {
                    **{name: part.state_dict() for name, part in parts.items()}, **spent,
                    "optimizers": [x.state_dict() for x in steppers], "step": step + 1,
                }  # fmt: skip
                torch.save(state, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)


def arguments(about: str, out: str, stop_at: int) -> argparse.Namespace:
    """Read the arguments of a script that trains: `out`, `stop_at` and `ship`."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--stop-at", type=int, default=stop_at, help="stop early, to be resumed")
    parser.add_argument("--ship", action="store_true", help="write into the package at the end")
    return parser.parse_args()


def spread(values: Sequence[float]) -> str:
    """Write the mean, least and most of a number over seeds.

    >>> spread([0.5, 1.0])
    '0.75 (0.50 to 1.00)'
    """
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write_card(
    about: str, folder: Path, measure: Callable[[], dict[str, Any]], card: Callable[[], str]
) -> None:
    """Write the card of a model into its folder; with `--measure` measure it before."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run the evaluation again")
    if parser.parse_args().measure:
        text = json.dumps(measure(), indent=1) + "\n"
        (folder / "evaluation.json").write_text(text)
    (folder / "README.md").write_text(card(), encoding="utf-8")
