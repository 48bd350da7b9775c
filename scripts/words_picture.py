"""Train the small painter of `regard.papers.shared.painting`, and look at where its words go.

python scripts/words_picture.py out/words.html           # trains it first: some minutes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regard.models.attach import attach
from regard.papers.shared.painting import Figure, Painter, painter, tokens, words
from regard.probes.maps import Maps
from regard.probes.registry import make_probes
from regard.probes.words import Words
from regard.views.seen import Seen

PROMPT: tuple[Figure, Figure] = (("red", "square"), ("blue", "disc"))


def looked(model: Painter, prompt: tuple[Figure, Figure]) -> Seen:
    """Paint once, under the eyes of the probes."""
    probe, maps = Words(words=words(*prompt)), Maps(128, {"steps": 0})
    entropy = make_probes("entropy")
    with torch.no_grad():
        states = model.encode(tokens(*prompt)[None])
        with attach(model.unet, [probe, maps, *entropy], check=False):
            image = model.paint(states)[0]
    scores = {x.name: x.told() for x in (probe, *entropy)}
    about = {"name": "a small painter: " + " ".join(words(*prompt)[1:-1]), "kind": "Painter"}
    seen = Seen(about, list(maps.found), scores, drawn=maps.found, image=pixels(image))
    seen.words_seen = probe.maps()
    return seen


def pixels(image: Tensor) -> np.ndarray:
    """A picture of an image [3, rows, columns] from -1 to 1, its pixels made large."""
    levels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.repeat_interleave(10, 1).repeat_interleave(10, 2).permute(1, 2, 0).numpy()


def main() -> None:
    """Train or load, paint, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--weights", type=Path, help="kept here, and read where they are there")
    told = parser.parse_args()
    if told.weights is not None and told.weights.exists():
        model = Painter().eval()
        model.load_state_dict(torch.load(told.weights))
    else:
        model, _ = painter(told.steps)
        if told.weights is not None:
            torch.save(model.state_dict(), told.weights)
    print(looked(model, PROMPT).save(told.page))


if __name__ == "__main__":
    main()
