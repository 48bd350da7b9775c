"""Train the painter that ships, on one CPU core in half an hour; resumes where it was killed.

    python scripts/painter/train.py

Rectified flow on pictures of one to three colored shapes; the weights are the running mean of
those of the training. A checkpoint every hundred steps; the loss every 50 steps in `log.jsonl`.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.models.shape_painter import (
    PAINTER,
    WordTable,
    WordTokenizer,
    save_painter,
    transformer,
)
from regard.tasks.colored_shapes import describe, draw_shapes, picture

STEPS, WARM_UP, COOL_DOWN, BATCH, SEED = 3100, 100, 0.25, 48, 0
MUON_RATE, ADAM_RATE, MEAN = 0.02, 2e-3, 0.998
# How often a picture has so many shapes; how often a color, or the whole text, is left out.
SHAPES, NO_COLOR, NO_TEXT = (0.3, 0.5, 0.2), 0.15, 0.1


def batch(step: int, tokenizer: WordTokenizer) -> tuple[Tensor, Tensor, torch.Generator]:
    """Pictures [b, 3, 16, 16] and ids [b, 9]: a function of the step alone, so a run can resume."""
    drawn = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    pictures, texts = [], []
    counts = torch.multinomial(torch.tensor(SHAPES), BATCH, True, generator=drawn) + 1
    for many in counts.tolist():
        shapes = draw_shapes(many, drawn)
        pictures.append(picture(shapes))
        hidden = torch.rand(many + 1, generator=drawn)
        said = [("a" if hidden[i] < NO_COLOR else x.color, x.shape) for i, x in enumerate(shapes)]
        texts.append("" if hidden[-1] < NO_TEXT else describe(said))
    return torch.stack(pictures), tokenizer.padded(texts), drawn


def loss_of(net: nn.Module, words: nn.Module, step: int, tokenizer: WordTokenizer) -> Tensor:
    """The squared error of the velocity at a time that is more often in the middle."""
    clean, ids, drawn = batch(step, tokenizer)
    noise = torch.randn(clean.shape, generator=drawn)
    sigma = torch.randn(len(clean), generator=drawn).sigmoid()[:, None, None, None]
    mixed = (1 - sigma) * clean + sigma * noise
    found = net(
        hidden_states=mixed, timestep=1000 * sigma.flatten(), encoder_hidden_states=words(ids),
        pooled_projections=torch.zeros(len(ids), 8), return_dict=False,
    )[0]  # fmt: skip
    return (found - (noise - clean)).square().mean()


def rate(step: int) -> float:
    """Warm up, stay, cool down to nothing: the share of the full learning rate."""
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (STEPS - step) / (COOL_DOWN * STEPS)))


def optimizers(both: nn.ModuleList) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    named = dict(both.named_parameters())
    inside = [p for n, p in named.items() if p.ndim == 2 and "transformer_blocks" in n]
    taken = {id(p) for p in inside}
    rest = [p for p in named.values() if id(p) not in taken]
    return [
        torch.optim.Muon(inside, lr=MUON_RATE, weight_decay=0.01, momentum=0.95,
                         adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]  # fmt: skip


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/painter"))
    parser.add_argument("--stop-at", type=int, default=STEPS, help="stop early, to be resumed")
    parser.add_argument("--ship", action="store_true", help="write into the package at the end")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    both, tokenizer = nn.ModuleList([transformer(), WordTable()]), WordTokenizer()
    steppers = optimizers(both)
    bases = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    mean, checkpoint, done = copy.deepcopy(both), asked.out / "checkpoint.pt", 0
    used = 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(saved["model"])
        mean.load_state_dict(saved["mean"])
        for stepper, state in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(state)
        done, used = saved["step"], saved["seconds"]
    start, losses = time.process_time() - used, []
    with (asked.out / "log.jsonl").open("a") as log:
        for step in range(done, asked.stop_at):
            loss = loss_of(both[0], both[1], step, tokenizer)
            loss.backward()
            nn.utils.clip_grad_norm_(both.parameters(), 1.0)
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base * rate(step)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            keep = min(MEAN, (1 + step) / (10 + step))
            with torch.no_grad():
                for old, new in zip(mean.parameters(), both.parameters(), strict=True):
                    old.lerp_(new, 1 - keep)
            losses.append(loss.item())
            if step % 50 == 49:
                line = {"step": step + 1, "loss": round(sum(losses) / len(losses), 4),
                        "cpu_seconds": round(time.process_time() - start, 1)}  # fmt: skip
                losses = []
                print(json.dumps(line), file=log, flush=True)
            if step % 100 == 99 or step + 1 == asked.stop_at:
                torch.save({
                    "model": both.state_dict(), "mean": mean.state_dict(), "step": step + 1,
                    "optimizers": [x.state_dict() for x in steppers],
                    "seconds": time.process_time() - start,
                }, checkpoint)  # fmt: skip
    save_painter(mean[0], mean[1], asked.out)
    if asked.ship:
        save_painter(mean[0], mean[1], PAINTER)


if __name__ == "__main__":
    main()
