"""The exact law of each edit and control of models that paint, read from weights and outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import regard
from regard import controls as c
from regard.controls import Region
from regard.controls import diffusion as d
from regard.controls.context import EditContext
from regard.controls.diffusion.map_losses import TextMaps, overlap
from regard.controls.noise_guidance import mixed
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.models.attach import attach
from regard.models.forward import Forward
from regard.models.site import Site
from regard.run.runner import run
from tests.controls.painting_models import (
    GRID,
    MODELS,
    Weights,
    inputs_of,
    model_of,
    paint,
    same_picture,
    told,
)  # fmt: skip

LEFT, RIGHT = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
each_model = pytest.mark.parametrize("kind", list(MODELS))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: model_of(kind) for kind in MODELS}


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


def a_call(kind: str, b: int = 2) -> tuple[Call, slice]:
    """A call as one of these models makes it, and where its picture is."""
    text = 0 if kind == "unet" else 5
    n = 24 + text
    order = {"unet": "image", "sd3": "image-text", "flux": "text-image"}[kind]
    forward = Forward(0, torch.tensor([7.0]), grid=GRID)
    site = Site(0, "joint" if text else "self", "a", 2, 2, 8, False, order)
    q, k, v = (torch.randn(b, 2, n, 8, dtype=torch.float64) for _ in range(3))
    start = text if order == "text-image" else 0
    return Call.of(2 * q, k, v, site=site, forward=forward), slice(start, start + 24)


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


def at_call(call: Call) -> EditContext:
    return EditContext(call, Prompt())


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


@each_model
def test_perturbed_attention_is_the_identity(kind: str) -> None:
    call, image = a_call(kind)
    at, result = at_call(call), run(call)
    out = d.KeepOwnValues().after(at, result).out
    assert torch.equal(out[:, :, image], call.v[:, :, image])
    text = [i for i in range(call.n) if not image.start <= i < image.stop]
    assert torch.equal(out[:, :, text], result.out[:, :, text])


@each_model
def test_blurred_queries_have_their_limits(kind: str) -> None:
    call, image = a_call(kind)
    call = call.replace(q=call.q.float(), k=call.k.float(), v=call.v.float())
    at = at_call(call)
    mean = d.BlurQueries(math.inf).before(at).q[:, :, image]
    assert torch.allclose(mean, call.q[:, :, image].mean(2, keepdim=True), atol=1e-5)
    assert d.BlurQueries(0.0).before(at) is call
    tiny = d.BlurQueries(1e-3).before(at).q
    assert torch.allclose(tiny, call.q, atol=1e-6)
    same = call.replace(q=torch.ones_like(call.q))
    assert torch.allclose(d.BlurQueries(2.0).before(at_call(same)).q, same.q, atol=1e-5)
    # Neighbors in a column are neighbors: a spike spreads up and down as it does to the sides.
    spike = torch.zeros(1, 2, call.n, 8)
    spike[:, :, image.start + 1 * 6 + 2] = 1
    one = call.replace(q=spike, k=call.k[:1], v=call.v[:1])
    spread = d.BlurQueries(1.0).before(at_call(one)).q[0, 0, image, 0].view(GRID)
    assert float(spread[1, 2]) == float(spread.max())
    assert float(spread[2, 2]) > float(spread[2, 3])
    assert float(spread[1, 3]) > float(spread[2, 3])


def test_guidance_is_linear_and_leads_away(models: Any) -> None:
    model, inputs = models["sd3"], inputs_of("sd3", 2)
    plain = paint(model, inputs)
    outs = {}
    for s in (1.0, 3.0):
        with regard.steer(model, "pag", strength=s, check=False):
            outs[s] = paint(model, inputs)
    assert torch.allclose(outs[3.0] - plain, 3 * (outs[1.0] - plain), atol=1e-4)
    with regard.steer(model, c.Edits(d.KeepOwnValues(), where={"kinds": ("self", "joint")}),
                      check=False):  # fmt: skip
        perturbed = paint(model, inputs)
    assert torch.allclose(outs[1.0], plain + (plain - perturbed), atol=1e-4)
    assert mixed((plain, 1), (perturbed, 1), -1.0)[1] == 1


@each_model
def test_negative_prompts_that_say_the_same_change_nothing(kind: str, models: Any) -> None:
    model, inputs = models[kind], inputs_of(kind, 4)
    control = d.NormalizedAttentionGuidance(4.0)
    alike = {n: x if "ids" in n else torch.cat((x[2:], x[2:])) for n, x in inputs.items()}
    plain = paint(model, alike, 2)
    with regard.steer(model, control, check=False, must_move=False, measure="none"):
        assert torch.allclose(paint(model, alike, 2), plain, atol=2e-5)


def test_sizes_stay_in_check() -> None:
    """The sum of sizes of an output is at most the limit times what it was."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, n, 8) for n in (24, 5, 5))
    forward = Forward(0, torch.tensor([7.0]), ("unconditional", "conditional"), GRID)
    site = Site(0, "cross", "a", 2, 2, 8, False)
    call = Call.of(q, k, v, site=site, forward=forward)
    result = run(call)
    edit = d.AwayFromOtherText(50.0, limit=2.5, mix=1.0)
    at = EditContext(call, Prompt(), branch="conditional")
    out = edit.after(at, result).out
    sizes = out.abs().sum((1, 3)) / result.out.abs().sum((1, 3))
    assert torch.allclose(sizes[:2], torch.ones(()))
    assert float(sizes.max()) <= 2.5 + 1e-4
    z = result.out[2:]
    other = run(call.replace(k=k[:2].repeat(2, 1, 1, 1), v=v[:2].repeat(2, 1, 1, 1))).out[2:]
    gentle = d.AwayFromOtherText(0.1, limit=100.0, mix=0.5).after(at, result).out[2:]
    assert torch.allclose(gentle, z + 0.05 * (z - other), atol=1e-5)


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_size_of_training_changes_nothing_bit_for_bit(kind: str, models: Any) -> None:
    model, inputs = models[kind], inputs_of(kind, 2)
    plain = paint(model, inputs)
    settings = {"check": False, "must_move": False}
    with regard.steer(model, d.EntropyScale(24), **settings):
        assert torch.equal(paint(model, inputs), plain)
    with regard.steer(model, d.EntropyScale(6), **settings):
        assert not torch.equal(paint(model, inputs), plain)


def test_entropy_drifts_less_with_its_scale() -> None:
    """Gaussian q and k: mean entropy, as a share of log N, stays nearer to that of training."""
    torch.manual_seed(0)
    trained, d_head = 64, 16

    def share(n: int, scaled: bool) -> float:
        q, k = torch.randn(2, 1, 8, n, d_head)
        factor = d.EntropyScale(trained).factor(n, n) if scaled else 1.0
        w = (1.5 * factor * q @ k.transpose(2, 3) * d_head**-0.5).softmax(-1)
        return float(-torch.special.xlogy(w, w).sum(-1).mean())

    base = share(trained, False)
    for n in (16, 256, 1024):
        assert abs(share(n, True) - base) < abs(share(n, False) - base)


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


# ---- latents ----


@each_model
def test_a_neglected_word_is_found_and_only_it_moves_the_latent(kind: str, models: Any) -> None:
    model, inputs = models[kind], {**inputs_of(kind, 1)}
    name = "sample" if kind == "unet" else "hidden_states"
    z, rest = inputs[name], {n: x for n, x in inputs.items() if n != name}
    rest["timestep"] = torch.tensor([7.0])
    with told(1):
        still = d.attend_and_excite(model, z, rest, [1, 3], step=0, steps=10, strength=0.0)
        assert torch.equal(still.latents, z)
        late = d.attend_and_excite(model, z, rest, [1, 3], step=6, steps=10)
        assert torch.equal(late.latents, z)
        found = d.guide_latents(
            model, z, rest, [1, 3], d.NeglectedWord(sharpen=10.0), size=0.5, times=8
        )
    assert not torch.equal(found.latents, z)
    assert float(found.losses[-1]) < float(found.losses[0])
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_is_that_of_the_most_neglected_word() -> None:
    maps = torch.rand(1, 24, 5, requires_grad=True)
    sets = tuple(torch.eye(5).bool()[i : i + 1] for i in (1, 3))
    both = d.NeglectedWord(10.0, smooth=0.0).loss(TextMaps(maps, GRID, sets))
    peaks = TextMaps(maps, GRID, sets).sharpened(10.0)[0].amax(0)[[1, 3]]
    assert torch.allclose(both, 1 - peaks.min())
    (slope,) = torch.autograd.grad(both.sum(), maps)
    assert int((slope.abs().sum(-1) > 0).sum()) == 1  # one place: the peak of that word


def test_overlap_and_retention_have_their_values() -> None:
    same, apart = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[0.0, 0, 1, 1]])
    assert float(overlap(same, same)) == 0.5
    assert float(overlap(same, apart)) == 0.0
    maps = torch.zeros(1, 4, 3)
    maps[0, :2, 1] = 1
    maps[0, :2, 2] = 1
    sets = tuple(torch.eye(3).bool()[i : i + 1] for i in (1, 2))
    loss = d.SeparateWords(sharpen=1.0, smooth=0.0, ignore=())
    assert float(loss.loss(TextMaps(maps, (2, 2), sets))) == pytest.approx(0.5)
    masks = loss.keep(TextMaps(maps, (2, 2), sets))
    kept = d.SeparateWords(masks, sharpen=1.0, smooth=0.0, ignore=())
    assert float(kept.loss(TextMaps(maps, (2, 2), sets))) == pytest.approx(0.5 + 2 * 0.5)


def test_steps_of_a_toy_latent_move_words_apart_and_inside() -> None:
    """A layer of cross-attention whose two words coincide at first."""
    torch.manual_seed(0)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = torch.nn.Parameter(3 * torch.randn(1, 1, 3, 4))

        def forward(self, hidden_states: Tensor, timestep: Any = None) -> Tensor:
            q = hidden_states[:, None]
            found: Tensor = torch.nn.functional.scaled_dot_product_attention(q, self.k, self.k)
            return found

    def maps_of(z: Tensor, layer: Layer) -> Tensor:
        return ((z[:, None] @ layer.k.transpose(2, 3)) / 2).softmax(-1)[:, 0]

    layer = Layer()
    z = (0.1 * torch.randn(1, 24, 4)).requires_grad_()
    sets = tuple(torch.eye(3).bool()[i : i + 1] for i in (1, 2))
    places = (torch.arange(24) % 6 < 3)[None], (torch.arange(24) % 6 >= 3)[None]
    for loss, bound in ((d.SeparateWords(sharpen=10.0), 0.5), (d.InsideRegions(), 0.1)):
        here, first = z.detach().clone(), None
        for _ in range(60):
            here = here.requires_grad_()
            value = loss.loss(TextMaps(maps_of(here, layer), GRID, sets, places))
            first = first or float(value.detach())
            (slope,) = torch.autograd.grad(value.sum(), here)
            here = (here - 4 * slope).detach()
        last = TextMaps(maps_of(here, layer), GRID, sets, places)
        assert float(loss.loss(last)) < bound * first
    inside = [float((w * r).sum() / w.sum()) for w, r in zip(
        last.of_words(last.maps), places, strict=True)]  # fmt: skip
    assert min(inside) > 0.9


def test_latents_move_with_the_flow_and_are_filled_up() -> None:
    g = torch.Generator().manual_seed(0)
    before, latent, noise = torch.randn(3, 2, 5, 7, generator=g)
    still, valid = torch.zeros(2, 5, 7), torch.ones(5, 7).bool()
    assert torch.equal(d.warp_latent(before, latent, still, valid), before)
    assert torch.equal(d.warp_latent(before, latent, still, ~valid), latent)
    right = still.clone()
    right[1] = -1  # each place comes from its left
    moved = d.warp_latent(before, latent, right, valid)
    assert torch.equal(moved[..., 1:], before[..., :-1])
    back = d.warp_latent(moved, latent, -right, valid)
    assert torch.equal(back[..., :-1], before[..., :-1])
    tail = d.tail_latent(before, noise, 0.4)
    a, b, t = (torch.fft.fft2(x) for x in (before, noise, tail))
    low = (torch.fft.fftfreq(5).abs()[:, None] * 2 <= 0.4) & (torch.fft.fftfreq(7).abs() * 2 <= 0.4)
    assert torch.allclose(t[:, low], a[:, low], atol=1e-4)
    assert torch.allclose(t[:, ~low], b[:, ~low], atol=1e-4)
    large = d.tail_latent(*torch.randn(2, 4, 64, 64, generator=g), 0.25)
    assert 0.9 < float(large.std()) < 1.1
    one = torch.full((2, 13, 2, 2), 3.0)
    assert torch.allclose(d.blend_segments([one, one, one], 6), torch.full((2, 27, 2, 2), 3.0))
    x = torch.randn(9, 4, generator=g)
    assert float(d.sliced_wasserstein(x, x[torch.randperm(9, generator=g)])) < 1e-10
    assert float(d.sliced_wasserstein(x, x + 1)) > 0.01


@each_model
def test_a_continued_video_is_the_last_one_where_all_is_the_same(kind: str, models: Any) -> None:
    model, inputs = models[kind], same_picture(inputs_of(kind, 2))
    with regard.steer(model, d.DiTCtrl(), check=False, must_move=False, measure="none"):
        both = paint(model, inputs)
    assert torch.allclose(both[0], both[1], atol=1e-5)
    whole = d.DiTCtrl(mask=Region(box=(0, 0, 1, 1)), target=Region(box=(0, 0, 1, 1)))
    other = inputs_of(kind, 2)
    with regard.steer(model, d.DiTCtrl(), check=False, measure="none"):
        a = paint(model, other)
    with regard.steer(model, whole, check=False, measure="none"):
        b = paint(model, other)
    assert torch.allclose(a, b, atol=1e-4)  # masks of ones are no masks
