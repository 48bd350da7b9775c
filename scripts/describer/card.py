"""Measure the describer that ships, and write its card.

    python scripts/describer/card.py [--measure]

Without `--measure` the card is written again from `evaluation.json` and `training-log.jsonl`.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_models import spread, write_card

from regard.models.shape_describer import DESCRIBER, WORDS, answers, ask, load_describer
from regard.tasks.described_shapes import draw_scene, noisy_picture, questions, told

SEEDS, PICTURES, NOISES = range(5), 24, (0.0, 1.0, 1.5)
KINDS = {"how": "how many", "is": "is there one", "color": "color", "where": "place"}


def measure() -> dict[str, object]:
    """Right answers of each kind, and objects that captions make up and miss, over five seeds."""
    model, tokenizer = load_describer()
    made: dict[str, object] = {"parameters": sum(x.numel() for x in model.parameters())}
    for noise in NOISES:
        rows: dict[str, list[float]] = {}
        for seed in SEEDS:
            drawn = torch.Generator().manual_seed(7000 + seed)
            scenes = [draw_scene(drawn) for _ in range(PICTURES)]
            pictures = torch.stack([noisy_picture(x, drawn, noise) for x in scenes])
            asked = [(i, q, a) for i, x in enumerate(scenes) for q, a in questions(x, drawn)]
            given = ask(tokenizer, pictures[[i for i, _, _ in asked]], [q for _, q, _ in asked])
            said = answers(model, tokenizer, given, max_new_tokens=4)
            right: dict[str, list[bool]] = {}
            for (_, q, a), own in zip(asked, said, strict=True):
                right.setdefault(KINDS[q.split()[0]], []).append(own == a)
            captions = answers(model, tokenizer, ask(tokenizer, pictures))
            found = [told(x, scene) for x, scene in zip(captions, scenes, strict=True)]
            own = {k: sum(x) / len(x) for k, x in right.items()}
            named, there = sum(x.named for x in found), sum(x.there for x in found)
            own["made up"] = sum(x.made_up for x in found) / max(named, 1)
            own["missed"] = sum(x.missed for x in found) / there
            for name, x in own.items():
                rows.setdefault(name, []).append(round(x, 3))
        made[str(noise)] = rows
    return made


def card() -> str:
    """The card, from the files beside it."""
    log = [json.loads(x) for x in (DESCRIBER / "training-log.jsonl").read_text().splitlines()]
    found = json.loads((DESCRIBER / "evaluation.json").read_text())
    names = [*KINDS.values(), "made up", "missed"]
    lines = []
    for noise in NOISES:
        cells = [spread(found[str(noise)][name]) for name in names]
        lines.append(f"| {noise} | {' | '.join(cells)} |")
    last, size = log[-1], (DESCRIBER / "model.safetensors").stat().st_size
    return f"""# The describer that ships

Written by `python scripts/describer/card.py` from `evaluation.json` and `training-log.jsonl`;
`python scripts/describer/train.py --ship` trains it again.

A model of language and vision of LLaVA's kind (`LlavaForConditionalGeneration`):
{found["parameters"]:,} parameters, {size / 1e6:.1f} MB in half precision. Three layers of four
heads see a picture of 24 by 24 pixels in 36 patches, four layers of four heads speak; it knows
{len(WORDS)} tokens, one for each word. It describes noisy pictures of one to five colored shapes
in a grid of three by three places, and answers how many there are, whether one is there, what color
and where: `answers(model, tokenizer, ask(tokenizer, pictures, "describe :"))`. It is there to try
controls on, and to measure what it makes up.

It learned from pictures that are drawn as it learns, in {last["step"]:,} steps of 48 pictures,
{round(last["cpu_seconds"] / 60)} minutes of one CPU core; the last loss is {last["loss"]:.3f}.
Noise of a deviation from 0 to 1.5 was laid over them (colors are -1 and 1), and they had habits:
six times in ten a shape was the usual one of its color, and a color the usual neighbor of the one
before. In what follows there are none, so what it makes up it takes from habit or noise.

Five seeds of {PICTURES} pictures (mean, least and most): right answers, objects that captions name
and that are not there ("made up", a share of those named), objects that they do not name
("missed"). By chance "is there one" is 0.5, "color" 0.25, "place" 0.11:

| noise | {" | ".join(names)} |
|---|{"---|" * len(names)}
{chr(10).join(lines)}

Its pictures and texts are its own and nobody's: none of others were used.
"""


if __name__ == "__main__":
    write_card(__doc__, DESCRIBER, measure, card)
