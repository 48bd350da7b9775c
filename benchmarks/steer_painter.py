"""Do controls of pictures do what their papers say? The painter that ships, five seeds, and rivals.

    python benchmarks/steer_painter.py objects leakage erasing likeness
    python benchmarks/steer_painter.py objects --tune      # settings, on seeds of their own

Every seed draws its own prompts and noise; a control and its rivals get the same. Objects are
found by a matcher, not by a model (`regard.tasks.colored_shapes`). What is written: the number of
every seed, the mean difference with a 95% interval over seeds (Student's t), whether it excludes 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import RESULTS, machine
from steer_language import interval
from torch import Tensor

import regard
from regard.controls import Region
from regard.controls import diffusion as d
from regard.models.diffusers import branches
from regard.models.shape_painter import ShapePainter, load_painter
from regard.tasks.colored_shapes import (
    COLORS,
    SHAPES,
    SIDE,
    SIZE,
    ColoredShape,
    describe,
    draw_shapes,
    found,
    ink,
    picture,
)

FILE = RESULTS / "steer-painter.json"
SEEDS, TUNING, PICTURES = range(5), range(100, 101), 8
# Boxes with background around them: where boxes cover all, bounded words have nothing to lead.
BOXES = (Region(box=(0.2, 0.05, 0.8, 0.45)), Region(box=(0.2, 0.55, 0.8, 0.95)))
# Numbers of the tokens of each shape: <start> red ring and blue square and green cross.
TOKENS = ((1, 2), (4, 5), (7, 8))
Measured = dict[str, float]


def pairs(many: int, seed: int) -> list[list[tuple[str, str]]]:
    """Colors and shapes of prompts of so many objects."""
    drawn = torch.Generator().manual_seed(seed)
    return [[(x.color, x.shape) for x in draw_shapes(many, drawn)] for _ in range(PICTURES)]


def paint(
    painter: ShapePainter, prompts: list[Any], seed: int, *controls: Any, **more: Any
) -> Tensor:
    """Pictures [b, 3, 16, 16] of prompts, under controls."""
    texts = [describe(x) for x in prompts]
    held = []
    try:
        for control in controls:
            held.append(regard.steer(painter, control, check=False, measure="none"))
        made: Tensor = painter(texts, generator=torch.Generator().manual_seed(seed), **more).images
    finally:
        for one in reversed(held):
            one.attached.detach()
    return made


def share_found(pictures: Tensor, prompts: list[Any]) -> float:
    """Share of named objects that are there, in their color and shape."""
    each = [found(x[None], p).float().mean() for x, p in zip(pictures, prompts, strict=True)]
    return float(torch.stack(each).mean())


def objects(
    painter: ShapePainter, seed: int, strength: float = 1.0, sharpen: float = 50.0
) -> Measured:
    """Share of the objects of prompts of three that are found, in eight pictures of ten steps."""
    prompts = pairs(3, seed)
    nouns = [second for _, second in TOKENS]
    ways: dict[str, tuple[tuple[Any, ...], float]] = {
        "attend_and_excite": (
            (d.AttendAndExcite(nouns, strength, rounds=5, sharpen=sharpen),), 3.0
        ),
        "a_star": ((d.AStar(nouns, strength, sharpen=sharpen),), 3.0),
        "plain": ((), 3.0), "more guidance": ((), 6.0),
    }  # fmt: skip
    return {
        name: share_found(
            paint(painter, prompts, seed, *own, guidance_scale=scale, num_inference_steps=10),
            prompts,
        )
        for name, (own, scale) in ways.items()
    }  # fmt: skip


def leaked(pictures: Tensor, prompts: list[Any]) -> float:
    """Share of the ink of two colors that is in the other's half, the better way around."""
    names, shares = list(COLORS), []
    for marks, ((a, _), (b, _)) in zip(ink(pictures), prompts, strict=True):
        one, two = marks[names.index(a)], marks[names.index(b)]
        half = SIDE // 2
        wrong = one[:, half:].sum() + two[:, :half].sum()
        every = (one.sum() + two.sum()).clamp(min=1)
        shares.append(torch.minimum(wrong, every - wrong) / every)
    return float(torch.stack(shares).mean())


def leakage(painter: ShapePainter, seed: int, strength: float = 20.0) -> Measured:
    """Share of the ink of two subjects in the other's half, in four pictures of ten steps."""
    prompts = pairs(2, seed)[:4]
    subjects = [d.Subject(d.TextPositions(t), r) for t, r in zip(TOKENS, BOXES, strict=False)]
    lead = d.LeadIntoRegions(subjects, strength)
    bound = d.BoundedAttention(subjects)
    ways = {"bounded and led": (bound, lead), "bounded": (bound,), "led": (lead,), "plain": ()}
    more = {"num_inference_steps": 10}
    made = {name: paint(painter, prompts, seed, *own, **more) for name, own in ways.items()}
    found_too = {f"found, {n}": share_found(x, prompts) for n, x in made.items()}
    return {**{n: leaked(x, prompts) for n, x in made.items()}, **found_too}


@torch.no_grad()
def filled(
    painter: ShapePainter, clean: Tensor, hole: Tensor, seed: int, control: Any = None
) -> Tensor:
    """Paint a hole anew without a prompt, from 0.8 of the noise; what is outside is kept."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    sigmas = torch.linspace(0.8, 0, 17)
    text = painter.words(painter.tokenizer.padded([""] * len(clean)))
    net = painter.transformer
    x = (1 - sigmas[0]) * clean + sigmas[0] * noise
    held = control and regard.steer(net, control, check=False, measure="none")
    try:
        for now, then in itertools.pairwise(sigmas.tolist()):
            with branches("conditional"):
                flow = net(
                    hidden_states=x, timestep=torch.full((len(x),), 1000 * now),
                    encoder_hidden_states=text, pooled_projections=torch.zeros(len(x), 8),
                    return_dict=False,
                )[0]  # fmt: skip
            x = x + (then - now) * flow
            x = torch.where(hole, x, (1 - then) * clean + then * noise)
    finally:
        if held:
            held.attached.detach()
    return x


def erasing(painter: ShapePainter, seed: int, strength: float = 9.0) -> Measured:
    """Share of the pixels of an erased object's place that hold ink afterwards: less is better."""
    drawn = torch.Generator().manual_seed(seed)
    place = draw_shapes(1, drawn)[0]
    shapes: list[list[ColoredShape]] = []
    while len(shapes) < PICTURES:  # an object at the same place in each, another anywhere else
        one, two = draw_shapes(2, drawn)
        if max(abs(two.top - place.top), abs(two.left - place.left)) > SIZE + 1:
            shapes.append([one._replace(top=place.top, left=place.left), two])
    clean = torch.stack([picture(x) for x in shapes])
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[max(place.top - 1, 0) : place.top + SIZE + 1, max(place.left - 1, 0) :][:, : SIZE + 2] = (
        True
    )
    eraser = d.AttentiveEraser(Region(pixels=hole), strength, cells=0)
    made: Measured = {}
    for name, control in (("eraser", eraser), ("the model alone", None)):
        x = filled(painter, clean, hole, seed, control)
        made[name] = float(ink(x).sum(1)[:, hole].mean())
    return made


def likeness(painter: ShapePainter, seed: int, rate: float = 0.5) -> Measured:
    """Share of pairs of four pictures of one prompt, no color named, with one color."""
    shapes = list(SHAPES)
    alike: dict[str, list[float]] = {}
    for k in range(PICTURES // 4):
        prompts = [[("a", shapes[(seed + k) % 3])]] * 4
        ways = {"shared": (d.StoryDiffusion(rate=rate),), "independent": ()}
        for name, own in ways.items():
            colors = (
                ink(paint(painter, prompts, 100 * seed + k, *own)).sum((2, 3)).argmax(1).tolist()
            )
            same = [a == b for a, b in itertools.combinations(colors, 2)]
            alike.setdefault(name, []).append(sum(same) / len(same))
    return {name: sum(x) / len(x) for name, x in alike.items()}


Claim = tuple[Callable[..., Measured], str, tuple[str, ...], int, list[dict[str, float]]]
# What measures it, whose number, its rivals, 1 where more is better, and settings to tune over.
CLAIMS: dict[str, Claim] = {
    "objects": (objects, "attend_and_excite", ("plain", "more guidance"), 1,
                [{"strength": a, "sharpen": b} for a in (0.3, 1.0) for b in (20.0, 50.0)]),
    "leakage": (leakage, "bounded and led", ("plain", "led"), -1,
                [{"strength": a} for a in (5.0, 20.0, 80.0)]),
    "erasing": (erasing, "eraser", ("the model alone",), -1,
                [{"strength": a} for a in (1.0, 3.0, 9.0)]),
    "likeness": (likeness, "shared", ("independent",), 1, [{"rate": a} for a in (0.5, 1.0)]),
}  # fmt: skip


def main() -> None:
    """Measure the claims named, print them, and keep them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claims", nargs="*", default=list(CLAIMS))
    parser.add_argument("--tune", action="store_true", help="try settings on other seeds")
    asked = parser.parse_args()
    painter = load_painter()
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"claims": {}}
    for name in asked.claims:
        measure, ours, rivals, sign, settings = CLAIMS[name]
        if asked.tune:
            for own in settings:
                runs = [measure(painter, s, **own) for s in TUNING]
                mean = {k: round(sum(r[k] for r in runs) / len(runs), 3) for k in runs[0]}
                print(name, own, mean, flush=True)
            continue
        start = time.process_time()
        runs = [measure(painter, s) for s in SEEDS]
        by = {key: [round(run[key], 4) for run in runs] for key in runs[0]}
        against = {}
        for rival in rivals:
            apart = interval([sign * (a - b) for a, b in zip(by[ours], by[rival], strict=True)])
            against[rival] = {"better by": apart, "holds": apart[1] > 0}
        kept["claims"][name] = {
            "measures": " ".join((measure.__doc__ or "").split()), "pictures_a_seed": PICTURES,
            "ours": ours, "more_is_better": sign > 0, "seeds": by,
            "mean": {k: interval(x) for k, x in by.items()}, "against": against,
            "cpu_seconds": round(time.process_time() - start),
        }  # fmt: skip
        print(name, json.dumps(kept["claims"][name], indent=1), flush=True)
        kept["machine"] = machine()
        FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
