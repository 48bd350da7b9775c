"""Train the describer that ships, on one CPU core in twenty minutes; resumes where it was killed.

    python scripts/describer/train.py

Pictures of one to five colored shapes, noisy, in which colors and shapes have habits: most often a
red one is a square and has a blue neighbor. Half of the rows describe, half answer questions; only
what the model says is learned. A checkpoint every fifty steps; the loss of fifty in `log.jsonl`.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_models import arguments, optimizers, rate, train

from regard.models.shape_describer import (
    DESCRIBER,
    PATCHES,
    WORDS,
    describer_config,
    word_tokenizer,
)
from regard.tasks.described_shapes import (
    caption,
    draw_scene,
    noisy_picture,
    questions,
)

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


def main() -> None:
    """Train, and write the weights."""
    asked = arguments(__doc__, "out/describer", STEPS)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = LlavaForConditionalGeneration(describer_config())

    def loss_of(step: int) -> Tensor:
        loss: Tensor = model(**batch(step), use_cache=False).loss
        return loss

    train(
        model, optimizers(model, lambda name: ".layers." in name, MUON_RATE, ADAM_RATE), loss_of,
        partial(rate, steps=STEPS, warm_up=WARM_UP, cool_down=COOL_DOWN), asked.out, asked.stop_at,
    )  # fmt: skip
    for folder in (asked.out / "model", *([DESCRIBER] if asked.ship else [])):
        model.half().save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
