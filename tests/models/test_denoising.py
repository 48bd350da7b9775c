"""Whole pipelines, from noise to latents: told step by step, the same with stages doing nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

import regard  # noqa: E402
from regard.models import Edit, Null, Stage, attach  # noqa: E402
from regard.models.diffusers import branches  # noqa: E402
from tests.diffusion import TEXT, build, cogvideox, flux, pixart, qwen, sd3, unet, wan  # noqa: E402

STEPS = 3
HALVES = ("unconditional", "conditional")


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def _vae() -> Any:
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def _pooled() -> dict[str, Tensor]:
    return {f"{sign}pooled_prompt_embeds": torch.randn(1, 16) for sign in ("", "negative_")}


def _masks(name: str) -> dict[str, Tensor]:
    ones = torch.ones(1, TEXT, dtype=torch.long)
    return {name: ones, f"negative_{name}": ones}


def with_unet() -> Any:
    """Branches in one batch."""
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    model, _ = build(unet)
    made = diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=model,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return made, model, {"height": 8, "width": 16, "guidance_scale": 4.0}


def with_pixart() -> Any:
    """Branches in one batch, masks on the text."""
    model, _ = build(pixart)
    made = diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=_vae(),
        transformer=model,
        scheduler=diffusers.DDIMScheduler(),
    )
    told = {"negative_prompt": None, "use_resolution_binning": False, "guidance_scale": 4.0}
    return made, model, {"height": 8, "width": 16, **told, **_masks("prompt_attention_mask")}


def with_sd3() -> Any:
    """Branches in one batch, joint attention."""
    model, _ = build(sd3)
    encoders = {f"{x}{i}": None for x in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    made = diffusers.StableDiffusion3Pipeline(
        transformer=model, scheduler=_flow(), vae=None, **encoders
    )
    return made, model, {"height": 32, "width": 48, "guidance_scale": 4.0, **_pooled()}


def with_flux() -> Any:
    """A forward for each branch."""
    model, _ = build(flux)
    encoders = {f"{x}{i}": None for x in ("text_encoder", "tokenizer") for i in ("", "_2")}
    made = diffusers.FluxPipeline(transformer=model, scheduler=_flow(), vae=None, **encoders)
    return made, model, {"height": 32, "width": 48, "true_cfg_scale": 4.0, **_pooled()}


def with_qwen() -> Any:
    """A forward for each branch, masks on the text."""
    model, _ = build(qwen)
    made = diffusers.QwenImagePipeline(
        scheduler=_flow(), vae=None, text_encoder=None, tokenizer=None, transformer=model
    )
    told = {"height": 32, "width": 48, "true_cfg_scale": 4.0}
    return made, model, {**told, **_masks("prompt_embeds_mask")}


def with_wan() -> Any:
    """A video; a forward for each branch."""
    model, _ = build(wan)
    made = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=_flow(), transformer=model
    )
    return made, model, {"height": 32, "width": 48, "num_frames": 5, "guidance_scale": 4.0}


# Each with whether it tells its branches by itself, and the grid of its image.
PIPELINES: dict[Callable[[], Any], tuple[bool, tuple[int, ...]]] = {
    with_unet: (False, (8, 16)),
    with_pixart: (False, (4, 8)),
    with_sd3: (False, (2, 3)),
    with_flux: (True, (2, 3)),
    with_qwen: (True, (2, 3)),
    with_wan: (True, (2, 2, 3)),
}


def ready(make: Callable[[], Any]) -> tuple[nn.Module, Callable[..., list[Tensor]]]:
    """Give the model of a pipeline, and what runs it: the latents after each step."""
    pipeline, model, told = make()
    pipeline.set_progress_bar_config(disable=True)
    embeds = {f"{sign}prompt_embeds": torch.randn(1, TEXT, 16) for sign in ("", "negative_")}

    def go() -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(_: Any, __: int, ___: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append(found["latents"].clone())
            return {}

        extra: dict[str, Any] = {"callback_on_step_end": keep}
        if make is with_pixart:
            extra = {"callback": lambda _, __, x: seen.append(x.clone()), "callback_steps": 1}
        pipeline(
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=STEPS,
            output_type="latent",
            **embeds,
            **told,
            **extra,
        )
        return seen

    return model, go


class Diary(Stage):
    """Writes down each moment once."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Any] = []

    def before(self, call: Any) -> Any:
        if not self.moments or self.moments[-1] is not call.forward:
            self.moments.append(call.forward)
        return call


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, float(b.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("make", PIPELINES, ids=lambda f: f.__name__)
def test_a_pipeline_is_itself_and_tells_its_moments(make: Callable[[], Any], seed: int) -> None:
    model, go = ready(make)
    tells, grid = PIPELINES[make]
    plain, diary = go(), Diary()
    assert len(plain) == STEPS
    with attach(model, [Null()]):
        for found, expected in zip(go(), plain, strict=True):
            close(found, expected)
    with attach(model, [diary]):
        go()
        go()  # a second denoising counts from 0 again
    each = ["conditional", "unconditional"] if tells else [None]
    assert [m.step for m in diary.moments] == 2 * [s for s in range(STEPS) for _ in each]
    times = [float(m.timestep.max()) for m in diary.moments]
    assert times[: len(times) // 2] == sorted(times[: len(times) // 2], reverse=True)
    assert len(set(times)) == STEPS
    assert {m.grid for m in diary.moments} == {grid}
    assert [m.branches for m in diary.moments] == 2 * STEPS * [x and (x,) for x in each]
    for now, expected in zip(go(), plain, strict=True):
        assert torch.equal(now, expected)
    assert "cache_context" not in vars(model)


@pytest.mark.parametrize("make", PIPELINES, ids=lambda f: f.__name__)
def test_a_step_is_chosen(make: Callable[[], Any], seed: int) -> None:
    model, go = ready(make)
    plain = go()
    with attach(model, [Edit("out", lambda o: 0 * o, where={"steps": [1]})]):
        found = go()
    assert torch.equal(found[0], plain[0])
    assert not torch.allclose(found[1], plain[1])
    with attach(model, [Edit("out", lambda o: 0 * o, where={"steps": STEPS})]):
        assert all(torch.equal(a, b) for a, b in zip(go(), plain, strict=True))


class Branch(Stage):
    """Silences the rows of one branch."""

    def __init__(self, branch: str) -> None:
        super().__init__()
        self.branch = branch

    def after(self, call: Any, partial: Any) -> Any:
        now = call.forward
        if self.branch not in now.branches:
            return partial
        out = partial.out.clone()
        out[now.rows(self.branch, call.b)] = 0
        return partial._replace(out=out)


@pytest.mark.parametrize("make", [with_unet, with_pixart, with_sd3], ids=lambda f: f.__name__)
@pytest.mark.parametrize("branch", HALVES)
def test_a_branch_in_a_batch_is_chosen(make: Callable[[], Any], branch: str, seed: int) -> None:
    model, go = ready(make)
    seen: list[Tensor] = []
    handle = model.register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out.sample)
    )
    go()
    with attach(model, [Branch(branch)]), branches(*HALVES):
        go()
    handle.remove()
    plain, found = seen[0], seen[STEPS]
    for name, was, came in zip(HALVES, plain.chunk(2), found.chunk(2), strict=True):
        assert torch.allclose(was, came, atol=1e-4 * float(was.abs().max())) == (name != branch)


@pytest.mark.parametrize(
    ("make", "part"), [(with_unet, "unet"), (with_sd3, "transformer")], ids=["unet", "transformer"]
)
def test_a_pipeline_is_told_to_pass_its_model(make: Callable[[], Any], part: str) -> None:
    with pytest.raises(regard.RegardError, match=f"pass its {part}"):
        attach(make()[0])


def test_a_branch_that_is_not_told_is_an_error(seed: int) -> None:
    model, go = ready(with_sd3)

    class Blind(Branch):
        def after(self, call: Any, partial: Any) -> Any:
            call.forward.rows(self.branch, call.b)
            return partial

    with attach(model, [Blind("conditional")]):
        with pytest.raises(regard.RegardError, match="branches"):
            go()
        with branches("a", "b", "c"), pytest.raises(regard.RegardError, match="'conditional'"):
            go()
        with branches("a", "conditional", "c"), pytest.raises(regard.RegardError, match="2 rows"):
            go()
        with branches(*HALVES):
            go()


@pytest.mark.parametrize("names", [(), ("a", "a"), (3,)])
def test_branches_are_named_apart(names: tuple[Any, ...]) -> None:
    with pytest.raises(regard.RegardError):
        branches(*names)


def test_frames_are_counted_where_they_come_first(seed: int) -> None:
    model, inputs = build(cogvideox)
    diary = Diary()
    with torch.no_grad(), attach(model, [diary]):
        model(timestep=torch.tensor([3]), **inputs)
    assert diary.moments[0].grid == (2, 2, 3)


def test_a_site_of_a_unet_finds_its_grid(seed: int) -> None:
    model, inputs = build(unet)
    found: set[Any] = set()

    class Grids(Stage):
        def before(self, call: Any) -> Any:
            found.add((call.n, call.forward.grid_of(call.n)))
            return call

    with torch.no_grad(), attach(model, [Grids()]):
        model(timestep=torch.tensor([3]), **inputs)
    assert (60, (6, 10)) in found
    assert all(n == grid[0] * grid[1] for n, grid in found)
