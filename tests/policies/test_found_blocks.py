"""Blocks found online, frames by calibration, weights in few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


import regard
from regard.core.call import Call
from regard.core.errors import CapabilityError, RegardError
from regard.models import Stage
from regard.models.attach import attach
from regard.models.diffusers import branches
from regard.policies import policy
from regard.policies.calibration import CalibrationError, calibrate
from regard.policies.distilling import distill
from regard.policies.frames import frame_pairs, tile_errors, tiles
from regard.policies.grids import image_of
from regard.policies.log_weights import group_quantized, log2_quantized
from regard.policies.online_blocks import choose
from regard.policies.shrinking import Shrinking
from regard.run import runner
from regard.run.mass import tile_mass
from regard.run.reference import weight_matrix
from tests.diffusion import build, hunyuan, pixart, wan
from tests.policies.test_denoising_policies import denoised
from tests.policies.test_grids import call_on, run

HALVES = ("unconditional", "conditional")


# Blocks found online


@given(n=st.integers(1, 40), tile=st.integers(1, 16), seed=st.integers(0, 99))
def test_the_mass_of_tiles_is_that_of_the_matrix(n: int, tile: int, seed: int) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, 2, n, 4)
    call = Call.of(q, k[:, :1], v[:, :1])
    full = torch.zeros(2, 2, -(-n // tile) * tile, -(-n // tile) * tile)
    full[:, :, :n, :n] = weight_matrix(call)[0]
    expected = full.unflatten(2, (-1, tile)).unflatten(4, (-1, tile)).sum((3, 5))
    torch.testing.assert_close(tile_mass(call, tile), expected, atol=1e-5, rtol=1e-5)


@given(
    t=st.integers(1, 12), h=st.integers(1, 5), text=st.integers(0, 3),
    keep=st.floats(0.05, 1.0), spread=st.floats(0.0, 0.5), seed=st.integers(0, 99),
)  # fmt: skip
def test_choices_are_of_the_share_and_have_the_text(
    t: int, h: int, text: int, keep: float, spread: float, seed: int
) -> None:
    torch.manual_seed(seed)
    mass, words = torch.rand(2, h, t, t), torch.arange(t) < text
    chosen = choose(mass, words, keep, spread)
    assert bool(chosen[..., words].all())
    assert bool(chosen[:, :, words].all())
    free = chosen[:, :, ~words][..., ~words]
    rows = int((~words).sum())
    if rows:
        per_row = free.sum(-1)
        assert bool((per_row == per_row[..., :1]).all())
        assert int(per_row.min()) >= 1
        assert float(per_row.float().mean()) == max(1, round(keep * rows))


def test_blocks_are_dense_then_searched_then_used() -> None:
    torch.manual_seed(0)
    model, inputs = build(wan, 2)
    plain = denoised(wan, model, inputs, 5)
    spa = policy("adaspa", block=2, searches=(1, 3), least=2)
    with regard.shrink(model, spa, keep=0.4, check=False) as shrunk:
        found = denoised(wan, model, inputs, 5)
        chosen = {k: x.chosen.clone() for k, x in spa._found.items()}
        again = denoised(wan, model, inputs, 5)  # a new denoising searches anew
        assert torch.equal(found, again)
        report = shrunk.report()
    assert torch.equal(found[0], plain[0])
    torch.testing.assert_close(found[1], plain[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found[2], plain[2], atol=1e-4)
    assert all(x.shape == (2, 2, 6, 6) for x in chosen.values())
    # Tiles of two tokens are computed whole; a search looks at scores once more.
    dense = 144.0
    own = next(x for x in report.layers if x.site.kind == "self")
    each = 2.0 * 2 * 2 * 24
    assert own.flops >= 2 * each * 5 * dense
    assert own.dense_flops == 2 * each * 5 * dense


def test_branches_have_blocks_of_their_own() -> None:
    torch.manual_seed(0)
    model, inputs = build(wan, 1)
    spa = policy("adaspa", block=2, searches=(0,), least=2)
    with regard.shrink(model, spa, keep=0.4, check=False):
        for time in (9, 8):
            for branch in HALVES:
                with branches(branch):
                    run(wan, model, inputs, time)
        assert {key[1] for key in spa._found} == {(b,) for b in HALVES}


# Frames


@given(frames=st.integers(1, 20), k=st.integers(1, 20))
def test_tiles_of_frames_are_counted(frames: int, k: int) -> None:
    k = min(k, frames)
    meets = frame_pairs(frames, k)
    assert int(meets.sum()) == tiles(frames, k)
    assert torch.equal(meets, meets.T)
    assert bool(frame_pairs(frames, frames).all())


def test_a_calibration_is_resumed_checked_and_used(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, inputs = build(hunyuan, 1)
    inputs["hidden_states"] = torch.randn(1, 4, 4, 4, 6)
    calls = [{**inputs, "timestep": torch.tensor([t])} for t in (9, 5, 1)]
    to = tmp_path / "tiles.cal"
    strict = policy("efficient_vdit_tile", error=1e-9)

    def stop(done: int, whole: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, strict, calls, to=to, progress=stop)
    seen: list[int] = []
    calibrate(model, strict, calls, to=to, progress=lambda done, _: seen.append(done))
    assert seen == [3]
    assert {tiles(4, k) for k in strict.references.values()} == {16}
    plain = run(hunyuan, model, inputs)
    with regard.shrink(model, "efficient_vdit_tile", calibrate=to, check=False):
        torch.testing.assert_close(run(hunyuan, model, inputs), plain, atol=1e-5, rtol=1e-4)
    loose = policy("efficient_vdit_tile", error=1e9)
    calibrate(model, loose, calls, to=to)
    assert set(loose.references.values()) == {1}
    with regard.shrink(model, loose, check=False) as shrunk:
        assert not torch.allclose(run(hunyuan, model, inputs), plain, atol=1e-4)
        assert shrunk.report().flops <= shrunk.report().dense_flops  # so few are computed whole
    other, _ = build(hunyuan, 1)
    with pytest.raises(CalibrationError, match="another"):
        regard.shrink(other, "efficient_vdit_tile", calibrate=to, check=False)


def test_images_have_no_frames() -> None:
    torch.manual_seed(0)
    model, inputs = build(pixart, 1)
    with (
        regard.shrink(model, "efficient_vdit_tile", check=False),
        pytest.raises(CapabilityError, match="several frames"),
    ):
        run(pixart, model, inputs)


def test_errors_of_tiles_are_those_of_masks() -> None:
    torch.manual_seed(0)
    call = call_on((5, 2, 2), 3)
    image = image_of(call)
    assert image is not None
    errors = tile_errors(call, image)
    assert len(errors) == 5
    assert errors[-1] < 1e-10 < errors[0]
    frame = torch.cat((torch.zeros(3), torch.arange(5).repeat_interleave(4))).long()
    mask = frame_pairs(5, 2)[frame[:, None], frame]
    mask[:3], mask[:, :3] = True, True
    plain = runner.run(call).out
    off = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, mask) - plain
    assert abs(errors[1] - float(off.square().mean() / plain.square().mean())) < 1e-6


def test_distilling_makes_the_shrunk_model_nearer() -> None:
    torch.manual_seed(0)
    model, inputs = build(wan, 1)
    inputs["hidden_states"] = torch.randn(1, 4, 4, 4, 4)
    one = {**inputs, "timestep": torch.tensor([5]), "return_dict": False}
    made = policy("efficient_vdit_tile")
    losses = list(distill(model, made, [one], keep=0.1, steps=40, rate=3e-3))
    assert losses[-1] < 0.5 * losses[0]


# Weights in few bits


@given(bits=st.integers(2, 5), start=st.sampled_from([None, 0, 2]), seed=st.integers(0, 99))
def test_weights_on_a_log_scale_are_within_a_factor(bits: int, start: Any, seed: int) -> None:
    torch.manual_seed(seed)
    weights = (3 * torch.randn(2, 2, 6, 5)).softmax(-1)
    weights[..., 4] = 0.0  # padding
    found = log2_quantized(weights, bits, start)
    rest = [c for c in range(5) if c != start]
    top = weights[..., rest].amax((1, 2, 3), keepdim=True)
    assert torch.equal(found[..., 4], weights[..., 4])
    if start is not None:
        assert torch.equal(found[..., start], weights[..., start])
    kept = (weights > top * 2.0 ** -(2**bits - 1)) & (weights > 0)
    kept[..., [c for c in range(5) if c == start]] = False
    ratio = (found / weights)[kept]
    assert float(ratio.max()) <= 2**0.5 + 1e-4
    assert float(ratio.min()) >= 2**-0.5 - 1e-4
    steps = (found / top)[..., rest]
    steps = steps[steps > 0].unique().log2()
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_words_are_weighed_in_few_bits() -> None:
    torch.manual_seed(0)
    model, inputs = build(pixart, 2)

    class Watch(Stage):
        def after(self, call: Call, partial: Any) -> Any:
            if call.site.kind == "cross":
                weights = log2_quantized(weight_matrix(call)[0], 3)
                torch.testing.assert_close(partial.out, weights @ call.v, atol=1e-5, rtol=1e-5)
            return partial

    plain = run(pixart, model, inputs)
    stage = Shrinking([policy("dgq", bits=3)], 0.5)
    with attach(model, [Watch(), stage], check=False):
        found = run(pixart, model, inputs)
    assert not torch.equal(found, plain)
    assert (found - plain).norm() < 0.3 * plain.norm()


@given(groups=st.integers(1, 6), dim=st.sampled_from([-1, -2]), seed=st.integers(0, 99))
def test_groups_have_scales_of_their_own(groups: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, 7, 6) * (10 * torch.rand(6)).exp()
    x = x if dim == -1 else x.transpose(1, 2).contiguous()
    error = (group_quantized(x, 8, groups, dim) - x).abs()
    size = x.abs().transpose(dim, -1).flatten(0, -2).amax(0)
    tops = torch.stack([size[size >= s].min() for s in size])
    assert torch.equal(tops, size)
    assert float(error.max()) <= float(size.max()) / 127 / 2 * 1.01
    if groups == 6:  # a scale for each
        by = error.transpose(dim, -1).flatten(0, -2).amax(0)
        assert bool((by <= size / 127 / 2 * 1.01).all())


def test_group_sizes_are_told() -> None:
    for settings in ({"bits": 1}, {"groups": 99}, {"dim": 0}):
        with pytest.raises(RegardError):
            group_quantized(torch.randn(2, 3, 4), **settings)
