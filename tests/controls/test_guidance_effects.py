"""Guidance by attention, scales of other sizes: the exact law of each, on three kinds of model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import regard
from regard import controls as c
from regard.controls import diffusion as d
from regard.controls.context import EditContext
from regard.controls.noise_guidance import mixed
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.models.forward import Forward
from regard.models.site import Site
from regard.run.runner import run
from tests.controls.painting_models import (
    GRID,
    MODELS,
    a_call,
    at_call,
    each_model,
    inputs_of,
    paint,
)


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
