"""The exact law of each edit and control of models that paint, read from weights and outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import regard
from regard.controls import Region
from regard.controls import diffusion as d
from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.models.attach import attach
from regard.models.forward import Forward
from regard.models.site import Site
from regard.run.runner import run
from tests.controls.painting_models import (
    GRID,
    LEFT,
    MODELS,
    RIGHT,
    Weights,
    a_call,
    at_call,
    each_model,
    inputs_of,
    paint,
)


def looked(
    model: Any, kind: str, control: Any, rows: int = 2, many: int = 1, grid: Any = GRID
) -> Weights:
    """The weights of a steered run."""
    seen = Weights()
    settings = {"check": False, "measure": "none", "must_move": False}
    with regard.steer(model, control, **settings), attach(model, seen, check=False):
        paint(model, inputs_of(kind, rows, grid=grid), many)
    return seen


def parts(call: Any) -> tuple[slice, slice, Tensor, Tensor]:
    """Tokens of text (as keys) and of the picture (as queries), and those of its two halves."""
    at = EditContext(call, Prompt())
    image = at.tokens_at("queries", "image")
    rows, columns = call.forward.grid_of(image.stop - image.start)
    left = (torch.arange(rows * columns) % columns + 0.5) / columns < 0.5
    text = slice(0, 0) if call.site.kind == "self" else at.tokens_at("keys", "text")
    return text, image, left, ~left


@each_model
def test_subjects_do_not_look_at_each_other(kind: str, models: Any) -> None:
    """Mass between regions, and on words of another subject, is exactly 0; rows sum to one."""
    subjects = [d.Subject((1, 2), LEFT), d.Subject(3, RIGHT)]
    seen = looked(models[kind], kind, d.BoundedAttention(subjects), 4, 2)
    for name, weights in seen.found.items():
        call = seen.calls[name]
        text, image, left, right = parts(call)
        own = weights[2:, :, image]  # the conditional branch
        if call.site.kind != "cross":
            between = own[..., image.start : image.stop]
            assert bool((between[:, :, left][..., right] == 0).all())
            assert bool((between[:, :, right][..., left] == 0).all())
            assert bool((weights[:2, :, image][..., image][:, :, left][..., right] > 0).any())
        if call.site.kind != "self":
            words = own[..., text]
            assert bool((words[:, :, left][..., 3] == 0).all())
            assert bool((words[:, :, right][..., 1:3] == 0).all())
            assert bool((words[:, :, left][..., 1:3] > 0).any())
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


@each_model
def test_regions_may_look_at_each_other_in_every_second_layer(kind: str, models: Any) -> None:
    subjects = [d.Subject((1, 2), LEFT), d.Subject(3, RIGHT)]
    seen = looked(models[kind], kind, d.BoundedAttention(subjects, regions="alternate"))
    apart = []
    for name, weights in seen.found.items():
        call = seen.calls[name]
        if call.site.kind != "cross":
            _, image, left, right = parts(call)
            between = weights[:, :, image][..., image]
            apart.append(bool((between[:, :, left][..., right] == 0).all()))
    assert len(apart) > 1
    assert apart == [bool(i % 2) for i in range(len(apart))]


@each_model
def test_a_subject_does_not_learn_of_the_other(kind: str) -> None:
    """In one layer, outputs in one region have no gradient with respect to the other."""
    torch.manual_seed(0)
    control = d.BoundedAttention([d.Subject((1, 2), LEFT), d.Subject(3, RIGHT)])
    call, image = a_call(kind)
    edits = control.edits()
    v = call.v.clone().requires_grad_()
    at = EditContext(call.replace(v=v), Prompt())
    new = at.call
    for edit in edits:
        new = edit.before(EditContext(new, Prompt()))
    left = (torch.arange(24) % 6) < 3
    out = run(new).out[:, :, image][:, :, left].sum()
    (slope,) = torch.autograd.grad(out, v)
    if kind != "cross":
        assert bool((slope[:, :, image][:, :, ~left] == 0).all())
        assert bool((slope[:, :, image][:, :, left] != 0).any())
    else:
        assert bool((slope[:, :, 3] == 0).all())


@each_model
def test_an_erased_object_gets_nothing_and_its_place_looks_around(kind: str, models: Any) -> None:
    region = Region(box=(0, 0, 0.5, 0.4))
    soft, hard = (
        looked(models[kind], kind, d.AttentiveEraser(region, cells=0, softness=x))
        for x in (0.3, 1.0)
    )
    for name, weights in hard.found.items():
        call = hard.calls[name]
        if call.site.kind == "cross":
            continue
        _, image, *_ = parts(call)
        grid = call.forward.grid_of(image.stop - image.start)
        inside = region.on(grid).flatten()
        for found in (weights, soft.found[name]):
            assert bool((found[..., image][..., inside] == 0).all())
            assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)
    # In the first layer, where inputs are the same, softness raises entropy inside alone.
    name = next(iter(hard.found))
    _, image, *_ = parts(hard.calls[name])
    inside = region.on(hard.calls[name].forward.grid_of(image.stop - image.start)).flatten()
    a, b = (-torch.special.xlogy(x.found[name], x.found[name]).sum(-1)[:, :, image]
            for x in (hard, soft))  # fmt: skip
    assert bool((b[..., inside] > a[..., inside]).all())
    assert torch.allclose(a[..., ~inside], b[..., ~inside], atol=1e-5)


@each_model
def test_a_grown_region_has_its_neighbors(kind: str, models: Any) -> None:
    region = Region(box=(0, 0, 0.25, 0.17))  # one cell of 4 x 6
    seen = looked(models[kind], kind, d.AttentiveEraser(region, cells=1))
    name = next(iter(seen.found))
    _, image, *_ = parts(seen.calls[name])
    gone = (seen.found[name][..., image] == 0).all(2).all(1).all(0).view(GRID)
    assert gone.int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6, [0] * 6]


@each_model
def test_extra_pictures_share_one_softmax(kind: str) -> None:
    """Odds of others are those of the scores; text keeps its odds where pictures are alike."""
    torch.manual_seed(0)
    call, image = a_call(kind)
    new = d.ReadPictures(d.PicturesBeside(), 1.0).before(at_call(call))
    assert new.m == call.m + 2 * 24
    weights = run(new, ("weights",)).weights
    assert weights is not None
    scores = call.q @ torch.cat((call.k, call.k.flip(0)[:, :, image]), 2).transpose(2, 3) * 8**-0.5
    rows = scores[:, :, image].exp()
    own, extra = weights[:, :, image][..., image], weights[:, :, image][..., call.m :]
    for row in range(2):  # one's own picture is not there twice
        assert bool((extra[row].unflatten(-1, (2, 24))[..., row, :] == 0).all())
    ratio = extra.sum(-1) / own.sum(-1)
    said = rows[..., call.m :].sum(-1) / rows[..., image].sum(-1)
    assert torch.allclose(ratio, said)
    if kind != "unet":
        text = [i for i in range(call.n) if not image.start <= i < image.stop]
        odds = weights[:, :, image][..., text].sum(-1) / (own.sum(-1) + extra.sum(-1))
        wanted = rows[..., text].sum(-1) / (
            (rows[..., image].sum(-1) + rows[..., call.m :].sum(-1)) / 2
        )
        assert torch.allclose(odds, wanted)
        assert bool((weights[:, :, text][..., call.m :] == 0).all())  # text reads none of it


@each_model
def test_reference_mass_grows_with_strength_and_masks_remove(kind: str) -> None:
    torch.manual_seed(0)
    call, image = a_call(kind)
    mass = []
    for strength in (0.0, 0.5, 1.0, 3.0):
        edit = d.ReadPictures(d.PicturesBeside((0,), region=LEFT), strength)
        new = edit.before(at_call(call))
        if not strength:
            assert new is call
            continue
        found = run(new, ("weights",)).weights
        assert found is not None
        assert bool((found[0, ..., call.m :] == 0).all())  # the reference reads nothing
        extra = found[1, :, image][..., call.m :]
        assert bool((extra[..., (torch.arange(24) % 6) >= 3] == 0).all())
        mass.append(float(extra.sum(-1).mean()))
    assert mass == sorted(mass)
    assert mass[-1] > mass[0] > 0


@each_model
def test_a_multiplied_mask_is_not_monotone(kind: str) -> None:
    """Why weights of FreeCustom are added: a factor lowers the odds where scores are negative."""
    call, image = a_call(kind)
    call = call.replace(q=call.q.abs(), k=-call.k.abs())
    scores = call.q @ call.k.transpose(2, 3) * 8**-0.5
    assert float(scores.max()) < 0
    both = [torch.cat((scores[:, :, image], w * scores[:, :, image]), -1).softmax(-1)
            for w in (1.0, 3.0)]  # fmt: skip
    mass = [float(x[..., scores.shape[3] :].sum(-1).mean()) for x in both]
    assert mass[1] < mass[0]


@each_model
def test_read_instead_is_replacement(kind: str) -> None:
    """Outputs are means of the reference's values in its mask; outside the target nothing moves."""
    torch.manual_seed(0)
    call, image = a_call(kind)
    edit = d.ReadPictures(d.PicturesBeside((0,), region=LEFT), 1.0, RIGHT, instead=True)
    weights = run(edit.before(at_call(call)), ("weights",)).weights
    plain = run(call, ("weights",)).weights
    assert weights is not None
    assert plain is not None
    right = (torch.arange(24) % 6) >= 3
    own = weights[1, :, image][:, right]
    assert bool((own[..., image] == 0).all())
    assert bool((own[..., call.m :][..., right] == 0).all())
    assert torch.allclose(own.sum(-1), torch.ones((), dtype=own.dtype))
    rest = weights[1, :, image][:, ~right]
    assert torch.allclose(rest[..., : call.m], plain[1, :, image][:, ~right])
    assert torch.allclose(weights[0, ..., : call.m], plain[0])


def test_regions_of_two_references_stay_apart() -> None:
    """Later steps of MagicFace: tokens of one region put nothing on the other's reference."""
    torch.manual_seed(0)
    call, _ = a_call("unet", 3)
    control = d.MagicFace((0, 1), (LEFT, RIGHT), layout_steps=0)
    new = call
    for edit in control.edits():
        new = edit.before(at_call(new))
    weights = run(new, ("weights",)).weights
    assert weights is not None
    left = (torch.arange(24) % 6) < 3
    a, b = weights[2, :, :, 24:48], weights[2, :, :, 48:]
    assert bool((a[:, ~left] == 0).all())
    assert bool((b[:, left] == 0).all())
    assert torch.allclose(a[:, left].sum(-1), torch.ones((), dtype=a.dtype))
    assert torch.allclose(b[:, ~left].sum(-1), torch.ones((), dtype=a.dtype))


def test_the_sample_is_the_same_in_both_branches_and_new_at_each_step() -> None:
    source = d.PicturesBeside(share=0.5)

    def drawn(step: int, branches: Any, b: int) -> Tensor:
        torch.manual_seed(0)
        call, _ = a_call("unet", b)
        forward = Forward(step, torch.tensor([7.0]), branches, GRID)
        call = call.replace(forward=forward)
        found = source.find(at_call(call))
        assert found is not None
        assert found.k.shape[2] == 24 * 0.5 * b / len(branches or (None,))
        return (found.k[:1, 0, :, None] == call.k[1, 0]).all(-1).any(0).any(0)

    both = drawn(0, ("unconditional", "conditional"), 4)
    assert torch.equal(both, drawn(0, None, 2))
    assert not torch.equal(both, drawn(1, None, 2))


def test_pictures_that_read_more_of_each_other_are_more_alike(models: Any) -> None:
    """Random features: outputs come nearer as the rate grows (one layer)."""
    torch.manual_seed(0)
    call, _ = a_call("unet", 4)
    apart = []
    for rate in (0.0, 0.25, 0.5, 1.0):
        edit = d.ReadPictures(d.PicturesBeside(share=rate), 1.0)
        out = run(edit.before(at_call(call))).out.mean(2).flatten(1)
        apart.append(float(torch.pdist(out).mean()))
    assert apart == sorted(apart, reverse=True)


def test_statistics_match() -> None:
    torch.manual_seed(0)
    for kind in MODELS:
        call, image = a_call(kind, 3)
        call = call.replace(q=call.q.float() * 2 + 1, k=call.k.float(), v=call.v.float())
        call = call.replace(q=call.q * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        made = d.MatchStatistics().before(at_call(call))
        for x in (made.q, made.k):
            own = x[:, :, image]
            assert torch.allclose(own.mean(2), own[:1].mean(2).expand(3, -1, -1), atol=1e-5)
            assert torch.allclose(own.std(2), own[:1].std(2).expand(3, -1, -1), atol=1e-5)
        assert torch.allclose(made.q[0], call.q[0], atol=1e-5)


@each_model
def test_subjects_reach_their_regions_alone(kind: str, models: Any) -> None:
    from tests.controls.test_diffusion_laws import subject_of

    model = models[kind]
    subject = subject_of(model)
    call, image = a_call(kind)
    if kind == "unet":
        forward = call.forward
        site = Site(0, "cross", subject.sites[0], 2, 2, 8, False)
        heads = 2
        size = subject.to_k[0].shape[0] // heads
        q, k, v = torch.randn(2, 2, 24, size), *torch.randn(2, 2, 2, 5, size)
        call = Call.of(q, k, v, site=site, forward=forward)
    else:
        site = Site(0, "joint", subject.sites[0], 2, 2, 8, False, call.site.modality)
        size = subject.to_k[0].shape[0] // 2
        q = torch.randn(2, 2, 29, size)
        call = Call.of(q, q, q, site=site, forward=call.forward)
    result = run(call)
    edit = d.AddAttention((subject, subject.replace(tokens=subject.tokens + 1)), (LEFT, RIGHT), 1.0)
    out = edit.after(at_call(call), result).out - result.out
    left = (torch.arange(24) % 6) < 3
    k, v = subject.keys_at(site.module, 2)
    alone = ((call.q[:, :, image] @ k.transpose(2, 3)) * call.d**-0.5).softmax(-1) @ v
    assert torch.allclose(out[:, :, image][:, :, left], alone[:, :, left], atol=1e-4)
    some = d.AddAttention((subject,), (LEFT,), 1.0).after(at_call(call), result).out - result.out
    assert bool((some[:, :, image][:, :, ~left] == 0).all())
    text = [i for i in range(call.n) if not image.start <= i < image.stop]
    assert bool((some[:, :, text] == 0).all())


def test_a_prompt_as_a_subject_is_that_prompt(models: Any) -> None:
    """A subject of the whole picture is painted as its own text is, whatever the prompt says."""
    model = models["unet"]
    asked, other = inputs_of("unet", 1), inputs_of("unet", 1, seed=3)
    text = other["encoder_hidden_states"]
    subject = d.prompt_subject(model, text[0])
    control = d.AutoStudio((subject,), (Region(box=(0, 0, 1, 1)),), strength=1.0)
    with regard.steer(model, control, check=False):
        found = paint(model, asked)
    own = paint(model, {**asked, "encoder_hidden_states": text})
    assert (found - own).abs().max() < 1e-4
    assert (found - paint(model, asked)).abs().max() > 1e-3
