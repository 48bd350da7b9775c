"""Do controls lower what a model of language and vision makes up? The describer that ships.

    python benchmarks/steer_describer.py
    python benchmarks/steer_describer.py --tune      # settings, on a seed of their own

Every seed draws its own noisy pictures; all ways describe the same. An object is made up where a
caption names a color and shape that the picture has not (or has less often). What is written: the
share made up and the share missed of every seed, and the mean difference to each rival with a 95%
interval over the seeds (Student's t). A way that says less makes up less: so `f1` stands beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from side_by_side import RESULTS, machine
from steer_language import interval

import regard
from regard.controls import AddBias, Edits, ImageTokens
from regard.controls.over_trust import decode_without_over_trust
from regard.controls.visual_sinks import VisualSinks, massive_channels
from regard.models.shape_describer import answers, ask, load_describer
from regard.tasks.described_shapes import draw_scene, noisy_picture, told

FILE = RESULTS / "steer-describer.json"
SEEDS, TUNING, PICTURES, NOISE, TOKENS = range(5), 100, 20, 1.5, 32
# Chosen on the tuning seed.
OPERA: dict[str, float] = {"strength": 1.0, "sigma": 50.0}
VAR: dict[str, float] = {"strength": 0.4, "above": 3.5}
PATIENCE = 4  # captions are short: 15 never comes


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
def channels(model: Any, tokenizer: Any) -> tuple[tuple[int, ...], dict[str, float]]:
    """Channels of massive activations of the language model, and how massive image tokens are."""
    drawn = torch.Generator().manual_seed(TUNING)
    pictures = torch.stack([noisy_picture(draw_scene(drawn), drawn, NOISE) for _ in range(16)])
    given = ask(tokenizer, pictures)
    hidden = model(**given, output_hidden_states=True).hidden_states[2]
    chosen = massive_channels(hidden)
    images = given["input_ids"] == model.config.image_token_index
    size = hidden.float()
    size = (size / size.square().mean(-1, keepdim=True).sqrt())[..., list(chosen)].abs().amax(-1)
    shares = {f"image tokens above {x}": float((size[images] > x).float().mean())
              for x in (2.5, 3.0, 3.5, 4.0, 5.0)}  # fmt: skip
    return chosen, shares


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="try settings on another seed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_describer()
    massive, shares = channels(model, tokenizer)
    start = time.process_time()
    plain = {
        "greedy": lambda x: answers(model, tokenizer, x, max_new_tokens=TOKENS),
        "five beams": lambda x: answers(model, tokenizer, x, max_new_tokens=TOKENS, num_beams=5),
    }

    def bias(s: float) -> Any:
        return lambda x: steered(model, tokenizer, x, Edits(AddBias(ImageTokens(), s)))

    def var(**own: float) -> Any:
        return lambda x: steered(model, tokenizer, x, VisualSinks(massive, **own))

    def opera(**own: float) -> Any:
        return lambda x: by_opera(model, tokenizer, x, **own)

    if asked.tune:
        print("channels", massive, shares)
        ways: dict[str, Any] = dict(plain)
        for s in (0.3, 1.0):
            ways[f"image louder {s}"] = bias(s)
        for above in (2.5, 3.5):
            for s in (0.4, 0.8):
                ways[f"VAR {above} {s}"] = var(strength=s, above=above, most=0.9)
        for s in (1.0,):
            ways[f"OPERA {s}"] = opera(strength=s, sigma=50.0)
        for name, x in measure(model, tokenizer, TUNING, ways).items():
            print(f"{name:30} {x:.3f}")
        return
    ways = {**plain, "image louder": bias(0.3), "VAR": var(**VAR), "OPERA": opera(**OPERA)}
    runs = [measure(model, tokenizer, s, ways) for s in SEEDS]
    by = {key: [round(run[key], 4) for run in runs] for key in runs[0]}
    against = {}
    for ours in ("OPERA", "VAR"):
        for rival in ("greedy", "five beams", "image louder"):
            for what, sign in (("made up", -1), ("f1", 1)):
                pairs = zip(by[f"{what}, {ours}"], by[f"{what}, {rival}"], strict=True)
                apart = interval([sign * (a - b) for a, b in pairs])
                against[f"{what}: {ours} and {rival}"] = {"better by": apart, "holds": apart[1] > 0}
    kept = {
        "pictures_a_seed": PICTURES, "noise": NOISE, "opera": {**OPERA, "patience": PATIENCE},
        "var": {**VAR, "channels": massive}, "massive": shares, "seeds": by,
        "mean": {k: interval(x) for k, x in by.items()}, "against": against,
        "cpu_seconds": round(time.process_time() - start), "machine": machine(),
    }  # fmt: skip
    print(json.dumps(kept, indent=1))
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
