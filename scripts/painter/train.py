"""Train the painter that ships, on one CPU core in half an hour; resumes where it was killed.

    python scripts/painter/train.py

Rectified flow on pictures of one to three colored shapes; the weights are the running mean of
those of the training. A checkpoint every hundred steps; the loss every 50 steps in `log.jsonl`.
"""

import copy
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_models import arguments, optimizers, rate, train

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


def main() -> None:
    """Train, and write the weights."""
    asked = arguments(__doc__, "out/painter", STEPS)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    both, tokenizer = nn.ModuleList([transformer(), WordTable()]), WordTokenizer()
    mean = copy.deepcopy(both)
    train(
        both,
        optimizers(both, lambda name: "transformer_blocks" in name, MUON_RATE, ADAM_RATE),
        lambda step: loss_of(both[0], both[1], step, tokenizer),
        partial(rate, steps=STEPS, warm_up=WARM_UP, cool_down=COOL_DOWN), asked.out, asked.stop_at,
        save_every=100, mean=mean, keep=lambda step: min(MEAN, (1 + step) / (10 + step)),
    )  # fmt: skip
    for folder in (asked.out, *([PAINTER] if asked.ship else [])):
        save_painter(mean[0], mean[1], folder)


if __name__ == "__main__":
    main()
