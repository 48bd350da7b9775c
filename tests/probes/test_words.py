"""Word maps: equal to the full matrix, on real grids, of the branch that is meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

diffusers = pytest.importorskip("diffusers")

import regard  # noqa: E402
from regard.core.errors import CapabilityError, RuleError, ShapeError, ValueRangeError  # noqa: E402
from regard.models import Stage, attach  # noqa: E402
from regard.models.diffusers import branches  # noqa: E402
from regard.models.pipelines import Runner, blocks_of  # noqa: E402
from regard.probes.words import WordMaps, Words, word_maps  # noqa: E402
from tests.diffusion import TEXT, build, cogvideox, flux, pixart, sd3, unet, wan  # noqa: E402
from tests.models.test_denoising import with_flux, with_sd3, with_unet  # noqa: E402

TIME = torch.tensor([7])
HALVES = ("unconditional", "conditional")


class Whole(Stage):
    """Keeps every matrix of weights: what word maps must equal, and must not need."""

    want = ("weights",)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, Tensor]] = []

    def see(self, call: Any, result: Any) -> None:
        if call.site.kind != "self":
            self.found.append((call.site, result.weights))


def naive(site: Any, weights: Tensor, row: int, text_first: bool, grid: tuple[int, ...]) -> Tensor:
    """Maps [tokens, rows, columns] sliced from a matrix [b, h, n, m] by hand."""
    w = weights[row].double().mean(0)
    if site.kind == "joint":
        n = len(w) - TEXT
        w = w[TEXT:, :TEXT] if text_first else w[:n, n:]
    w = w.T.float().reshape(TEXT, -1, *grid[-2:])  # frames of a video are averaged
    return w.mean(1)


# Each with whether text comes first, and the grids that it has.
CASES = {
    unet: (False, {60: (6, 10), 15: (3, 5)}),
    sd3: (False, {11: (2, 3)}),
    flux: (True, {11: (2, 3)}),
    pixart: (False, {6: (2, 3)}),
    wan: (False, {12: (2, 2, 3)}),
    cogvideox: (True, {17: (2, 2, 3)}),
}


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_maps_equal_the_full_matrix(make: Any, seed: int) -> None:
    text_first, grids = CASES[make]
    model, inputs = build(make, 2)
    probe, whole = Words(row=1), Whole()
    with torch.no_grad(), attach(model, [probe, whole], check=False):
        model(timestep=TIME.expand(2), **inputs)
    maps = probe.maps()
    assert len(whole.found) == len(maps.found) > 0
    wanted = []
    for site, weights in whole.found:
        each = naive(site, weights, 1, text_first, grids[weights.shape[2]])
        torch.testing.assert_close(maps.found[0, site], each, atol=1e-5, rtol=0)
        wanted.append(interpolate(each[None], size=maps.grid, mode="bilinear")[0])
    torch.testing.assert_close(maps.map(), torch.stack(wanted).mean(0), atol=1e-5, rtol=0)
    assert maps.grid == max((g[-2:] for g in grids.values()), key=lambda g: g[0] * g[1])
    mass = weights[1].double().mean(0)  # text and image together have all the weight
    assert 0 < float(maps.map().sum(0).max()) <= 1 + 1e-5
    assert mass.sum(-1).allclose(torch.ones(1, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("definition", ["apart", "mass"])
def test_what_is_said_of_heads_equals_the_full_matrix(definition: str, seed: int) -> None:
    model, inputs = build(sd3)
    probe, whole = Words(definition=definition), Whole()
    with torch.no_grad(), attach(model, [probe, whole], check=False):
        model(timestep=TIME, **inputs)
    for site, weights in whole.found:
        w = weights[0, :, :-TEXT, -TEXT:].double()
        mass = w.sum(-1)
        p = w / mass[..., None]
        spread = torch.special.entr(p).sum(-1).mean(-1)
        apart = torch.special.entr(p.mean(1)).sum(-1) - spread
        wanted = mass.mean(-1) if definition == "mass" else apart
        assert probe.told().values[site].allclose(wanted, atol=1e-5)


def test_chosen_heads_alone_are_averaged(seed: int) -> None:
    model, inputs = build(flux)
    probe, whole = Words({"heads": [1]}), Whole()
    with torch.no_grad(), attach(model, [probe, whole], check=False):
        model(timestep=TIME, **inputs)
    site, weights = whole.found[0]
    each = naive(site, weights[:, 1:2], 0, True, (2, 3))
    assert probe.maps().found[0, site].allclose(each, atol=1e-5)


def embeds() -> dict[str, Tensor]:
    return {f"{sign}prompt_embeds": torch.randn(1, TEXT, 16) for sign in ("", "negative_")}


def arguments(told: dict[str, Any], steps: int = 2) -> dict[str, Any]:
    more = {"num_inference_steps": steps, "output_type": "latent"}
    return {**told, **embeds(), **more, "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("make", [with_unet, with_sd3, with_flux], ids=lambda f: f.__name__)
def test_a_pipeline_tells_its_branches_by_the_rows_that_hold_the_prompt(
    make: Any, seed: int
) -> None:
    pipeline, model, told = make()
    pipeline.set_progress_bar_config(disable=True)
    given = arguments(told)
    maps = word_maps(pipeline, {**given, "generator": torch.Generator().manual_seed(0)})
    assert maps.steps == [0, 1]
    named = () if make is with_flux else HALVES  # Flux says which branch it runs
    again = {**given, "generator": torch.Generator().manual_seed(0)}
    wanted = word_maps(pipeline, again, branches=named)
    other = word_maps(
        pipeline, {**given, "generator": torch.Generator().manual_seed(0)}, branch="unconditional"
    )
    assert torch.equal(maps.map(), wanted.map())
    assert not torch.allclose(maps.map(), other.map(), atol=1e-6)
    assert "encode_prompt" not in vars(pipeline)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    # Where the order of the batch is turned around, so are the names.
    if named:
        again = {**given, "generator": torch.Generator().manual_seed(0)}
        turned = word_maps(pipeline, again, branches=named[::-1])
        assert torch.equal(turned.map(), other.map())


def test_without_guidance_the_only_branch_is_the_prompt(seed: int) -> None:
    pipeline, _, told = with_unet()
    pipeline.set_progress_bar_config(disable=True)
    maps = word_maps(pipeline, arguments({**told, "guidance_scale": 1.0}, 1))
    assert maps.branch == "conditional"
    assert maps.grid == (8, 16)


def test_a_batch_that_does_not_say_what_it_is_is_an_error(seed: int) -> None:
    model, inputs = build(unet, 2)
    given = {**inputs, "timestep": TIME}
    with pytest.raises(RuleError, match="does not say what they are"):
        word_maps(model, given)
    halves = [word_maps(model, given, branches=HALVES, branch=b).map() for b in HALVES]
    rows = [word_maps(model, given, row=row).map() for row in (0, 1)]
    for half, row in zip(halves, rows, strict=True):
        assert torch.equal(half, row)
    with branches("unconditional"), pytest.raises(CapabilityError, match="no forward of the"):
        word_maps(model, given)
    with pytest.raises(ValueRangeError, match="0 to 1"):
        word_maps(model, given, row=2)


def test_words_are_named_and_padding_is_left_out(seed: int) -> None:
    model, inputs = build(unet)
    given = {**inputs, "timestep": TIME}
    maps = word_maps(model, given, words=["a", "red", "fo", "x"])
    assert maps.words == ("a", "red", "fo", "x")
    every = word_maps(model, given)
    assert torch.equal(maps.map(), every.map()[:4])
    assert torch.allclose(maps.of("fox"), every.map()[2:4].sum(0))
    heaviest = maps.words_at(1, 2)[0]
    assert heaviest[1] == float(maps.map()[:, 1, 2].max())
    assert len(maps.to_frame()) == 4 * len(maps.sites)
    assert torch.equal(word_maps(model, given, words=["", "red"]).map(), every.map()[1:2])
    with pytest.raises(RuleError, match="did you mean 'red'"):
        maps.of("rad")
    with pytest.raises(ShapeError, match="at most 5"):
        word_maps(model, given, words=["x"] * 6)
    with pytest.raises(RuleError, match="a step among"):
        maps.map(step=3)


def test_steps_and_sites_average_to_the_whole(seed: int) -> None:
    pipeline, _, told = with_sd3()
    pipeline.set_progress_bar_config(disable=True)
    maps = word_maps(pipeline, arguments(told, 3))
    steps = torch.stack([maps.map(step=s) for s in maps.steps]).mean(0)
    sites = torch.stack([maps.map(site=s) for s in range(len(maps.sites))]).mean(0)
    assert torch.allclose(steps, maps.map(), atol=1e-6)
    assert torch.allclose(sites, maps.map(), atol=1e-6)
    assert not torch.allclose(maps.map(step=0), maps.map(step=2), atol=1e-6)


@pytest.mark.parametrize("make", [unet, sd3, flux], ids=lambda f: f.__name__)
def test_a_diffusion_model_is_seen(make: Any, seed: int, tmp_path: Any) -> None:
    model, inputs = build(make)
    seen = regard.see(model, {**inputs, "timestep": TIME})
    assert isinstance(seen.words_seen, WordMaps)
    assert "words" in seen.scores
    assert seen.save(tmp_path / "x.html").stat().st_size > 1000


def test_a_model_of_text_alone_has_no_word_maps() -> None:
    model = regard.model(["mha"], dim=16, heads=2, vocab=20)
    with pytest.raises(CapabilityError, match="cross or joint"):
        regard.see(model, torch.randint(0, 20, (1, 6)), ["words"])


def test_text_is_known_by_its_rows() -> None:
    prompt = torch.randn(2, 3, 4)
    other = torch.randn(2, 3, 4)
    assert blocks_of(torch.cat([prompt, other]), prompt) == HALVES[::-1]
    assert blocks_of(torch.cat([other, prompt, prompt]), prompt) == (*HALVES, "conditional 2")
    assert blocks_of(other, prompt) == ("unconditional",)
    assert blocks_of(torch.randn(2, 4, 4), prompt) == ()
    assert blocks_of(None, prompt) == ()


def test_bad_pipelines_and_prompts_are_named() -> None:
    pipeline, _, _ = with_unet()
    with pytest.raises(RuleError, match="a prompt"):
        word_maps(pipeline, 3)
    with pytest.raises(RuleError, match="a pipeline and a prompt"):
        word_maps(torch.nn.Linear(2, 2), "a fox")
    assert Runner(pipeline).words("a fox") == []
