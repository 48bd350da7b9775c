"""Measure the painter that ships, and write its card: python scripts/painter/card.py [--measure].

Without `--measure` the card is written again from `evaluation.json` and `training-log.jsonl`.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_models import spread, write_card

from regard.models.shape_painter import PAINTER, load_painter
from regard.tasks.colored_shapes import COLORS, SHAPES, describe, draw_shapes, found, matches

SEEDS, PICTURES = range(5), 32


def measure() -> dict[str, object]:
    """Objects found in pictures of prompts of one, two and three objects, over five seeds."""
    painter = load_painter()
    made: dict[str, object] = {"parameters": sum(
        x.numel() for part in (painter.transformer, painter.words) for x in part.parameters()
    )}  # fmt: skip
    names = list(COLORS)
    for many in (1, 2, 3):
        rows: dict[str, list[float]] = {"objects": [], "colors": [], "shapes of these": []}
        for seed in SEEDS:
            drawn = torch.Generator().manual_seed(1000 * many + seed)
            prompts = [[(x.color, x.shape) for x in draw_shapes(many, drawn)]
                       for _ in range(PICTURES)]  # fmt: skip
            images = painter([describe(p) for p in prompts], generator=drawn).images
            right = [found(x[None], p)[0].tolist() for x, p in zip(images, prompts, strict=True)]
            there = [[bool(m[names.index(c)].max() > 0.4) for c, _ in p]
                     for m, p in zip(matches(images), prompts, strict=True)]  # fmt: skip
            flat = [(a, b) for r, t in zip(right, there, strict=True)
                    for a, b in zip(r, t, strict=True)]  # fmt: skip
            rows["objects"].append(sum(a for a, _ in flat) / len(flat))
            rows["colors"].append(sum(b for _, b in flat) / len(flat))
            rows["shapes of these"].append(
                sum(a for a, b in flat if b) / max(sum(b for _, b in flat), 1)
            )
        made[str(many)] = {k: [round(x, 3) for x in v] for k, v in rows.items()}
    return made


def card() -> str:
    """The card, from the files beside it."""
    log = [json.loads(x) for x in (PAINTER / "training-log.jsonl").read_text().splitlines()]
    found_by = json.loads((PAINTER / "evaluation.json").read_text())
    lines = []
    for many in ("1", "2", "3"):
        cells = [spread(values) for values in found_by[many].values()]
        lines.append(f"| {many} | {' | '.join(cells)} |")
    last, size = log[-1], (PAINTER / "painter.safetensors").stat().st_size
    minutes, words = round(last["cpu_seconds"] / 60), len(COLORS) + len(SHAPES)
    return f"""# The painter that ships

Written by `python scripts/painter/card.py` from `evaluation.json` and `training-log.jsonl`;
`python scripts/painter/train.py --ship` trains it again.

A transformer of Stable Diffusion 3's kind and a table of words: {found_by["parameters"]:,}
parameters, {size / 1e6:.1f} MB in half precision, 4 layers of 4 heads, 64 tokens of a picture of 16
by 16 pixels and 9 of a prompt in one attention. It paints shapes ({", ".join(SHAPES)}) of 5 by 5
pixels in colors ({", ".join(COLORS)}) on black: `load_painter()("red ring and blue square")`. It
knows {words} words, "a" (any color) and "and". It is there to try controls on, not to look at.

It learned from pictures that are drawn as it learns, of one (30%), two (50%) or three objects, in
{last["step"]:,} steps of 48 pictures, {minutes} minutes of one CPU core; the last loss is
{last["loss"]:.3f}. It was trained in two parts, the second from the checkpoint at step 2,300, where
the falling rate of an earlier schedule had just begun; the script has the second's throughout.

Objects of prompts that are found in its pictures (20 steps, guidance 3; {PICTURES} pictures a
seed, five seeds: mean, least and most). Named colors, and named shapes where the color is there; a
shape by chance is 0.33:

| objects | color and shape | color | shape where the color is |
|---|---|---|---|
{chr(10).join(lines)}

Its pictures are its own and nobody's: no picture or text of others was used.
"""


if __name__ == "__main__":
    write_card(__doc__, PAINTER, measure, card)
