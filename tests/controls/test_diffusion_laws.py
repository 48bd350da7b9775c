"""What every control of models that paint must do, on a UNet, an SD3 and a Flux alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import regard
from regard import controls
from regard.controls import Control, NothingMoved, PerRow, Region
from regard.controls import diffusion as d
from regard.controls.diffusion.diffusion_control import PICTURE, TEXT
from regard.core.errors import RegardError
from regard.core.value import Value
from regard.models.attach import attach, hook_of
from regard.models.stage import Stage
from tests.controls.painting_models import (
    LEFT,
    RIGHT,
    Weights,
    each_model,
    inputs_of,
    paint,
    rows_of,
    same_picture,
)

SUBJECTS = (d.Subject((1, 2), LEFT), d.Subject(3, RIGHT))
# What a control must be told, and which settings it is tried with.
NEEDED: dict[str, dict[str, Any]] = {
    "freecustom": {"references": (0,), "masks": (LEFT,)},
    "visctrl": {"target": LEFT},
    "magicface": {"references": (0,), "regions": (LEFT,)},
    "subject_across_frames": {"which": LEFT},
    "attentive_eraser": {"which": Region(box=(0, 0, 0.5, 0.3))},
    "bounded_attention": {"subjects": SUBJECTS},
    "attention_modulation": {"subjects": SUBJECTS},
    "entropy_scale": {"trained": 12},
    "ms_diffusion": {"regions": (LEFT,)},
    "autostudio": {"regions": (LEFT,)},
    "diffuhaul": {"source": LEFT, "target": RIGHT, "words": (1,)},
    "attend_and_excite": {
        "words": (1, 3),
        "strength": 0.1,
        "rounds": 2,
        "peaks": ((0.0, 0.99),),
        "sharpen": 5.0,
    },
    "a_star": {"words": (1, 3), "strength": 0.1, "sharpen": 5.0},
    "isolated_subjects": {"regions": (LEFT, RIGHT), "masks": (RIGHT, LEFT)},
    "inside_regions": {"subjects": SUBJECTS, "strength": 1.0, "rounds": 1},
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "diffuhaul later": ("diffuhaul", {**NEEDED["diffuhaul"], "soft_steps": 0}),
    "magicface later": ("magicface", {**NEEDED["magicface"], "layout_steps": 0}),
    "bounded alternate": ("bounded_attention", {"subjects": SUBJECTS, "regions": "alternate"}),
    "bounded free": ("bounded_attention", {"subjects": SUBJECTS, "regions": "free"}),
    "seg of some width": ("smoothed_energy_guidance", {"sigma": 1.0}),
    "ditctrl by object": ("ditctrl", {"mask": LEFT, "target": RIGHT}),
    "story of neighbors": ("storydiffusion", {"window": 1, "rate": 1.0}),
}
NAMED = sorted({k.name for k in controls.known().values() if k.models == "diffusion"})
CASES = [*NAMED, *MORE]
every = pytest.mark.parametrize("name", CASES)
# Those that take one number, since their steps have their own; or that run the model twice.
ONE_NUMBER = (
    "magicface",
    "diffuhaul",
    "attention_modulation",
    "attend_and_excite",
    "a_star",
    "inside_regions",
)
# Those that change the latent, which every branch reads.
LEADING = ("attend_and_excite", "a_star", "inside_regions")
GUIDING = ("perturbed_attention_guidance", "smoothed_energy_guidance", "attentive_eraser",
           "seg of some width")  # fmt: skip
BRANCHES = 2
PICTURES = 2


def subject_of(model: Any, kinds: tuple[str, ...] = TEXT) -> d.SubjectTokens:
    """A subject with an adapter for every site of a model that reads a prompt, or a picture."""
    g = torch.Generator().manual_seed(5)
    found = [x for x in hook_of(model)[1] if x.kind in kinds]
    sizes = [x.heads * x.head_size for x in found]
    weights = [tuple(torch.randn(s, 6, generator=g) for s in sizes) for _ in range(2)]
    names = tuple(x.module for x in found)
    return d.SubjectTokens(torch.randn(4, 6, generator=g), names, *weights)


def made(name: str, model: Any, **settings: Any) -> Control:
    """The control of a case."""
    plain, needed = MORE.get(name, (name, NEEDED.get(name, {})))
    if plain in ("ms_diffusion", "customcontrast"):
        needed = {**needed, "subjects": (subject_of(model),)}
    if plain == "pinco":
        needed = {**needed, "subjects": (subject_of(model, PICTURE),)}
    if plain == "autostudio":
        needed = {**needed, "texts": (subject_of(model),), "images": (subject_of(model),)}
    return controls.control(plain, **{**needed, **settings})


def steered(model: Any, control: Control, **settings: Any) -> Any:
    return regard.steer(model, control, **{"check": False, "measure": "none", **settings})


@every
@each_model
def test_it_does_something_and_says_so(name: str, kind: str, models: Any) -> None:
    model, inputs = models[kind], inputs_of(kind, BRANCHES * PICTURES)
    plain = paint(model, inputs, BRANCHES)
    with steered(model, made(name, model), measure="all") as one:
        changed = paint(model, inputs, BRANCHES)
    assert not torch.equal(changed, plain)
    assert changed.isfinite().all()
    assert one.receipt.fired > 0
    assert one.receipt.moved > 1e-4
    assert one.receipt.forwards == 1
    assert one.receipt.control in str(one.receipt)
    assert one.receipt.as_dict()["fired"] == one.receipt.fired
    assert torch.equal(paint(model, inputs, BRANCHES), plain)  # and leaves no trace


@every
@each_model
def test_neutral_strength_changes_nothing(name: str, kind: str, models: Any) -> None:
    model, inputs = models[kind], inputs_of(kind, BRANCHES * PICTURES)
    plain = paint(model, inputs, BRANCHES)
    control = made(name, model, strength=0.0)
    assert control.is_neutral
    with steered(model, control, must_move=False):
        assert torch.equal(paint(model, inputs, BRANCHES), plain)
    with pytest.raises(NothingMoved), steered(model, control, measure="all"):
        paint(model, inputs, BRANCHES)


@every
@each_model
def test_an_exception_restores(name: str, kind: str, models: Any) -> None:
    class Broken(Stage):
        def after(self, call: Any, result: Any) -> Any:
            raise KeyboardInterrupt

    model, inputs = models[kind], inputs_of(kind, BRANCHES * PICTURES)
    plain = paint(model, inputs, BRANCHES)
    control = made(name, model)
    with (
        pytest.raises(KeyboardInterrupt),
        steered(model, control),
        attach(model, Broken(), check=False),
    ):
        paint(model, inputs, BRANCHES)
    assert torch.equal(paint(model, inputs, BRANCHES), plain)
    with steered(model, control):  # and nothing is left of the call that was broken off
        assert not torch.equal(paint(model, inputs, BRANCHES), plain)


@every
@each_model
@pytest.mark.parametrize("many", [1, 2, 3])
def test_each_branch_is_served_as_it_should_be(
    name: str, kind: str, many: int, models: Any
) -> None:
    """Rows of other branches are as they were; guidance is the same in all of them."""
    model, inputs = models[kind], inputs_of(kind, many * PICTURES)
    control = made(name, model)
    plain = paint(model, inputs, many)
    if many == 1 and name == "normalized_attention_guidance":
        with (
            pytest.raises(RegardError, match="whose text is led away from"),
            steered(model, control),
        ):
            paint(model, inputs, many)
        return
    with steered(model, control):
        changed = paint(model, inputs, many)
    moved = (changed - plain).unflatten(0, (many, PICTURES)).abs().flatten(1).amax(1) > 1e-4
    assert bool(moved[-1])
    if name in GUIDING and control.branch == "conditional":
        whole = (changed - plain).unflatten(0, (many, PICTURES))
        assert torch.allclose(whole[0], whole[-1], atol=1e-4)
    elif many > 1:
        assert bool(moved[0]) == (control.branch is None or name in LEADING)


@every
@each_model
def test_separate_passes_equal_one_batch(name: str, kind: str, models: Any) -> None:
    from regard.models.diffusers import branches

    model, inputs = models[kind], inputs_of(kind, 2 * PICTURES)
    control = made(name, model)
    if name == "normalized_attention_guidance":
        # It reads the other branch, which must be in the batch.
        with (
            branches("conditional"),
            steered(model, control, must_move=False),
            pytest.raises(RegardError, match="whose text is led away from"),
        ):
            paint(model, inputs)
        return
    if name in GUIDING and control.branch == "conditional":
        # What is added to both branches in a batch is added to one in a pass of its own.
        plain = paint(model, inputs, 2)
        with steered(model, control):
            whole = paint(model, inputs, 2)
            with branches("conditional"):
                alone = paint(model, rows_of(inputs, slice(2, 4)))
            with branches("unconditional"):
                other = paint(model, rows_of(inputs, slice(0, 2)))
        assert torch.allclose(whole[2:], alone, atol=2e-4)
        assert torch.allclose(whole[:2] - plain[:2], alone - plain[2:], atol=2e-4)
        assert torch.allclose(other, plain[:2], atol=2e-4)
        return
    with steered(model, control):
        whole = paint(model, inputs, 2)
        for at, branch in enumerate(("unconditional", "conditional")):
            rows = slice(at * PICTURES, (at + 1) * PICTURES)
            with branches(branch):
                alone = paint(model, rows_of(inputs, rows))
            assert torch.allclose(whole[rows], alone, atol=2e-4), (whole[rows] - alone).abs().max()


@every
@each_model
def test_a_strength_for_each_picture(name: str, kind: str, models: Any) -> None:
    """The first picture at strength 0 is as it was, in every branch."""
    model, inputs = models[kind], inputs_of(kind, BRANCHES * PICTURES)
    one = made(name, model)
    both = PerRow((0.0, one.strength))
    if MORE.get(name, (name,))[0] in ONE_NUMBER:
        with pytest.raises(RegardError, match="one number"):
            made(name, model, strength=both)
        return
    plain = paint(model, inputs, BRANCHES)
    with steered(model, one):
        whole = paint(model, inputs, BRANCHES)
    with steered(model, made(name, model, strength=both)):
        mixed = paint(model, inputs, BRANCHES)
    assert torch.allclose(mixed[::2], plain[::2], atol=1e-4)
    # What picture 1 reads of picture 0 is not what it reads where 0 is steered, too.
    plain_name = MORE.get(name, (name,))[0]
    others_read = plain_name in ("storydiffusion", "subject_across_frames", "style_aligned")
    if not others_read:
        assert torch.allclose(mixed[1::2], whole[1::2], atol=1e-3)
    assert not torch.allclose(mixed[1::2], plain[1::2], atol=1e-4)


@every
@each_model
def test_half_precision_is_near(name: str, kind: str, models: Any) -> None:
    model, inputs = models[kind], inputs_of(kind, BRANCHES * PICTURES)
    control = made(name, model)
    half = copy.deepcopy(model).to(torch.bfloat16)
    usual = (paint(half, inputs, BRANCHES).float() - paint(model, inputs, BRANCHES)).abs().mean()
    with steered(model, control):
        exact = paint(model, inputs, BRANCHES)
    with steered(half, control):
        near = paint(half, inputs, BRANCHES)
    assert near.dtype == torch.bfloat16
    assert near.isfinite().all()
    times = 4 * (1 + 2 * float(control.strength)) if name in GUIDING else 6
    assert (near.float() - exact).abs().mean() < times * usual + 1e-3


@every
def test_json_and_python_read_back(name: str, models: Any) -> None:
    control = made(name, models["unet"], where={"layers": [1], "heads": [0]})
    assert Value.from_json(control.to_json()) == control
    names = {kind.__name__: kind for kind in _values(control)}
    assert eval(repr(control), {"torch": torch, "inf": float("inf"), **names}) == control
    for act in control.describe():
        assert act["point"]
        assert act["law"]
        assert act["where"]["layers"] == (1,)


def _values(x: Any) -> list[type]:
    if isinstance(x, tuple):
        return [kind for y in x for kind in _values(y)]
    if not isinstance(x, Value):
        return []
    return [type(x), *(kind for _, y in x.fields() for kind in _values(y))]


@every
@each_model
def test_rows_sum_to_one_beside_a_probe(name: str, kind: str, models: Any) -> None:
    model, inputs = models[kind], inputs_of(kind, BRANCHES * PICTURES)
    control = made(name, model)
    with steered(model, control):
        alone = paint(model, inputs, BRANCHES)
    seen = Weights()
    with steered(model, control), attach(model, seen, check=False):
        both = paint(model, inputs, BRANCHES)
    assert torch.allclose(both, alone, atol=2e-4)
    for weights in seen.found.values():
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


SHARING: dict[str, dict[str, Any]] = {
    "storydiffusion": {"rate": 1.0},
    "reference_attention": {},
    "visctrl": {"target": None},
    "cross_frame_attention": {},
    "style_aligned": {},
    "freecustom": {"masks": (), "weight": 0.0},
    "ditctrl": {},
    "magicface": {},
    "magicface later": {},
}


@pytest.mark.parametrize("name", list(SHARING))
@each_model
@pytest.mark.parametrize("many", [1, 2])
def test_the_same_picture_shared_changes_nothing(
    name: str, kind: str, many: int, models: Any
) -> None:
    """Every key is there several times over, and weighs as much as before."""
    model, inputs = models[kind], same_picture(inputs_of(kind, many * 3))
    plain = paint(model, inputs, many)
    with steered(model, made(name, model, **SHARING[name]), must_move=False) as one:
        shared = paint(model, inputs, many)
    assert one.receipt.fired > 0
    assert torch.allclose(shared, plain, atol=2e-5), (shared - plain).abs().max()


@each_model
def test_a_size_that_halves_unevenly(kind: str, models: Any) -> None:
    """Seven rows and nine columns, halved inside of a UNet."""
    model = models[kind]
    inputs = inputs_of(kind, BRANCHES * PICTURES, grid=(7, 9))
    for name in ("bounded_attention", "attentive_eraser", "smoothed_energy_guidance", "visctrl"):
        with steered(model, made(name, model), measure="all") as one:
            assert paint(model, inputs, BRANCHES).isfinite().all()
        assert one.receipt.moved > 1e-4


def test_all_are_tried() -> None:
    assert set(NEEDED) <= set(NAMED)
    assert len(NAMED) >= 14
