"""Train the describer that ships, on one CPU core in twenty minutes; resumes where it was killed.

    python scripts/describer/train.py

Pictures of one to five colored shapes, noisy, in which colors and shapes have habits: most often a
red one is a square and has a blue neighbor. Half of the rows describe, half answer questions; only
what the model says is learned. A checkpoint every fifty steps; the loss of fifty in `log.jsonl`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from regard.models.shape_describer import (
    DESCRIBER,
    PATCHES,
    WORDS,
    describer_config,
    word_tokenizer,
)
from regard.tasks.described_shapes import caption, draw_scene, noisy_picture, questions

STEPS, WARM_UP, COOL_DOWN, BATCH, SEED = 1500, 100, 0.4, 48, 0
MUON_RATE, ADAM_RATE = 0.02, 3e-3
# How often colors and shapes are the usual ones, and the most noise that a picture has.
HABIT, MOST_NOISE = 0.6, 1.5
IDS = {word: i for i, word in enumerate(WORDS)}


def row(drawn: torch.Generator) -> tuple[Tensor, list[int], list[int]]:
    """A picture [3, 24, 24], ids, and labels: -100 where nothing is to be learned."""
    scene = draw_scene(drawn, HABIT)
    noise = MOST_NOISE * float(torch.rand((), generator=drawn))
    ids = [IDS["<start>"]] + [IDS["<image>"]] * PATCHES
    labels = [-100] * len(ids)
    turns = [("describe :", caption(scene))]
    if torch.rand((), generator=drawn) < 0.5:
        asked = questions(scene, drawn)
        turns = [asked[i] for i in torch.randperm(len(asked), generator=drawn).tolist()]
    for question, answer in turns:
        said = [IDS[x] for x in answer.split()] + [IDS["<end>"]]
        asked_ids = [IDS[x] for x in question.split()]
        ids += asked_ids + said
        labels += [-100] * len(asked_ids) + said
    return noisy_picture(scene, drawn, noise), ids, labels


def batch(step: int) -> dict[str, Tensor]:
    """The rows of a step: a function of the step alone, so a run can resume."""
    drawn = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    pictures, ids, labels = zip(*(row(drawn) for _ in range(BATCH)), strict=True)
    longest = max(len(x) for x in ids)
    return {
        "pixel_values": torch.stack(pictures),
        "input_ids": torch.tensor([x + [0] * (longest - len(x)) for x in ids]),
        "labels": torch.tensor([x + [-100] * (longest - len(x)) for x in labels]),
    }


def rate(step: int) -> float:
    """Warm up, stay, cool down to nothing: the share of the full learning rate."""
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (STEPS - step) / (COOL_DOWN * STEPS)))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    taken = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(inside, lr=MUON_RATE, weight_decay=0.01, momentum=0.95,
                         adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]  # fmt: skip


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/describer"))
    parser.add_argument("--stop-at", type=int, default=STEPS, help="stop early, to be resumed")
    parser.add_argument("--ship", action="store_true", help="write into the package at the end")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = LlavaForConditionalGeneration(describer_config())
    steppers = optimizers(model)
    bases = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    checkpoint, done, used = asked.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for stepper, state in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(state)
        done, used = saved["step"], saved["seconds"]
    start, losses = time.process_time() - used, []
    with (asked.out / "log.jsonl").open("a") as log:
        for step in range(done, asked.stop_at):
            loss = model(**batch(step), use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base * rate(step)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            losses.append(loss.item())
            if step % 50 == 49 or step + 1 == asked.stop_at:
                line = {"step": step + 1, "loss": round(sum(losses) / len(losses), 4),
                        "cpu_seconds": round(time.process_time() - start, 1)}  # fmt: skip
                losses = []
                print(json.dumps(line), file=log, flush=True)
                state = {
                    "model": model.state_dict(), "step": step + 1,
                    "optimizers": [x.state_dict() for x in steppers],
                    "seconds": time.process_time() - start,
                }  # fmt: skip
                torch.save(state, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
    for folder in (asked.out / "model", *([DESCRIBER] if asked.ship else [])):
        model.half().save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
