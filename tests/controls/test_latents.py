"""Steps of latents along gradients of maps, and latents beside attention, keep their laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import regard
from regard.controls import Region
from regard.controls import diffusion as d
from regard.controls.diffusion.map_losses import TextMaps, overlap
from tests.controls.painting_models import GRID, each_model, inputs_of, paint, same_picture, told

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


@each_model
def test_maps_are_read_beside_a_control_that_forbids(kind: str, models: Any) -> None:
    """Words of the other subject get nothing, and the latent is led all the same."""
    model, inputs = models[kind], inputs_of(kind, 1)
    name = "sample" if kind == "unet" else "hidden_states"
    latents = inputs.pop(name)
    inputs["timestep"] = torch.tensor([7.0])
    edges = (Region(box=(0, 0, 1, 0.34)), Region(box=(0, 0.67, 1, 1)))
    subjects = [d.Subject(words, x) for words, x in zip(((1, 2), 3), edges, strict=True)]
    with regard.steer(model, d.BoundedAttention(subjects), check=False, must_move=False):
        led = d.guide_latents(model, latents, inputs, subjects, d.InsideRegions(), size=1.0)
    assert not torch.equal(led.latents, latents)
    maps, (left, right) = led.maps.maps, led.maps.regions
    assert bool((maps[:, left[0]][..., 3] == 0).all())
    assert bool((maps[:, right[0]][..., [1, 2]] == 0).all())
