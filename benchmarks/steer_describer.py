"""Do controls lower what a model of language and vision makes up? The describer that ships.

    python benchmarks/steer_describer.py

Every seed draws its own noisy pictures; all ways describe the same. An object is made up where a
caption names a color and shape that the picture has not (or has less often). What is written: the
share made up and the share missed of every seed, and the mean difference to each rival with a 95%
interval over the seeds (Student's t). A way that says less makes up less: so `f1` stands beside it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from side_by_side import RESULTS, machine
from steer_language import interval

import regard
from regard.controls import AddBias, Edits, ImageTokens
from regard.controls.over_trust import decode_without_over_trust
from regard.controls.visual_sinks import VisualSinks, massive_channels, normalized
from regard.models.shape_describer import answers, ask, load_describer
from regard.tasks.described_shapes import draw_scene, noisy_picture, told

FILE = RESULTS / "steer-describer.json"
SEEDS, TUNING, PICTURES, NOISE, TOKENS = range(5), 100, 12, 1.0, 32
OPERA: dict[str, float] = {"strength": 1.0, "sigma": 50.0}
PATIENCE, LOUDER = 4, 0.3  # captions are short: the paper's 15 never comes


def by_opera(model: Any, tokenizer: Any, given: dict[str, Any], **settings: float) -> list[str]:
    """Captions decoded one picture at a time, with a fine for over-trust."""
    said = []
    for one in range(len(given["input_ids"])):
        ids = given["input_ids"][one : one + 1]
        found = decode_without_over_trust(
            model, ids, tokens=TOKENS, patience=PATIENCE, early=10,
            images=ids[0] == model.config.image_token_index, end=tokenizer.eos_token_id,
            pixel_values=given["pixel_values"][one : one + 1], **settings,
        ).ids[0, ids.shape[1] :]  # fmt: skip
        said.append(tokenizer.decode(found, skip_special_tokens=True))
    return said


def steered(model: Any, tokenizer: Any, given: dict[str, Any], control: Any) -> list[str]:
    """Captions under a control, greedily."""
    with regard.steer(model, control, check=False, measure="none", must_move=False):
        return answers(model, tokenizer, given, max_new_tokens=TOKENS)


@torch.no_grad()
def massive(model: Any, tokenizer: Any) -> tuple[tuple[int, ...], float]:
    """Channels of massive activations, and what one in twenty image tokens exceeds there.

    On pictures of a seed of their own. A language model of 4,096 channels has sinks above 20; in
    one of 128 no token comes so far.
    """
    drawn = torch.Generator().manual_seed(TUNING)
    pictures = torch.stack([noisy_picture(draw_scene(drawn), drawn, NOISE) for _ in range(16)])
    given = ask(tokenizer, pictures)
    hidden = model(**given, output_hidden_states=True).hidden_states[2]
    chosen = massive_channels(hidden)
    sizes = normalized(hidden)[..., list(chosen)].abs().amax(-1)
    images = given["input_ids"] == model.config.image_token_index
    return chosen, round(float(sizes[images].quantile(0.95)), 2)


def measure(model: Any, tokenizer: Any, seed: int, ways: dict[str, Any]) -> dict[str, float]:
    """Shares made up and missed, and F1 of objects, for each way."""
    drawn = torch.Generator().manual_seed(seed)
    scenes = [draw_scene(drawn) for _ in range(PICTURES)]
    given = ask(tokenizer, torch.stack([noisy_picture(x, drawn, NOISE) for x in scenes]))
    made: dict[str, float] = {}
    for name, way in ways.items():
        found = [told(x, s) for x, s in zip(way(given), scenes, strict=True)]
        named, there = sum(x.named for x in found), sum(x.there for x in found)
        made_up, missed = sum(x.made_up for x in found), sum(x.missed for x in found)
        made[f"made up, {name}"] = made_up / max(named, 1)
        made[f"missed, {name}"] = missed / there
        made[f"f1, {name}"] = 2 * (named - made_up) / (named + there)
    return made


def main() -> None:
    """Measure, print, and keep."""
    torch.set_num_threads(1)
    model, tokenizer = load_describer()
    start = time.process_time()
    chosen, above = massive(model, tokenizer)

    def greedy(x: Any, **more: Any) -> list[str]:
        return answers(model, tokenizer, x, max_new_tokens=TOKENS, **more)

    ways: dict[str, Any] = {
        "greedy": greedy,
        "five beams": lambda x: greedy(x, num_beams=5),
        "image louder": lambda x: steered(
            model, tokenizer, x, Edits(AddBias(ImageTokens(), LOUDER))
        ),
        "VAR": lambda x: steered(model, tokenizer, x, VisualSinks(chosen, above=above)),
        "OPERA": lambda x: by_opera(model, tokenizer, x, **OPERA),
    }
    runs = []
    for seed in SEEDS:
        runs.append(measure(model, tokenizer, seed, ways))
        print(seed, json.dumps(runs[-1]), flush=True)
    by = {key: [round(run[key], 4) for run in runs] for key in runs[0]}
    against = {}
    for ours in ("OPERA", "VAR"):
        for rival in ("greedy", "five beams", "image louder"):
            for what, sign in (("made up", -1), ("f1", 1)):
                pairs = zip(by[f"{what}, {ours}"], by[f"{what}, {rival}"], strict=True)
                apart = interval([sign * (a - b) for a, b in pairs])
                against[f"{what}: {ours} and {rival}"] = {
                    "better by": apart, "holds": apart[1] > 0
                }  # fmt: skip
    kept = {
        "pictures_a_seed": PICTURES, "noise": NOISE, "opera": {**OPERA, "patience": PATIENCE},
        "var": {"channels": chosen, "above": above}, "louder": LOUDER, "seeds": by,
        "mean": {k: interval(x) for k, x in by.items()}, "against": against,
        "cpu_seconds": round(time.process_time() - start), "machine": machine(),
    }  # fmt: skip
    print(json.dumps(kept, indent=1))
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
