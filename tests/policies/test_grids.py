"""Policies by place on a grid: masks against dense references, counts, refusals."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import regard
from regard.core.call import Call
from regard.core.errors import CapabilityError, RegardError
from regard.models.forward import Forward
from regard.models.site import Site, Sites
from regard.policies import Budget, policy
from regard.policies.base import Step
from regard.run import runner
from tests.architectures import DECODERS
from tests.architectures import build as build_text
from tests.diffusion import MAKERS, build, flux, hunyuan, pixart, sd3, unet, wan

NAMES = ["grat", "grat_criss_cross"]
MODELS = pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)


def run(make: Callable[..., Any], model: Any, inputs: dict[str, Any], time: int = 7) -> Tensor:
    """One forward at a time of denoising."""
    moment = torch.full((len(next(iter(inputs.values()))),), time)
    name = "timesteps" if make.__name__ == "hidream" else "timestep"
    with torch.no_grad():
        found: Tensor = model(**{**inputs, name: moment}, return_dict=False)[0]
    return found


def call_on(grid: tuple[int, ...], text: int, h: int = 2, front: bool = True, b: int = 1) -> Call:
    """A call of joint attention over a grid and text, before it or behind it."""
    order = "text-image" if front else "image-text"
    site = Site(0, "joint", "attn", h, h, 8, modality=order)
    n = prod(grid) + text
    q, k, v = torch.randn(3, b, h, n, 8)
    return Call.of(q, k, v, site=site, forward=Forward(0, grid=grid))


def selected(made: Any, call: Call, keep: Any = 0.25) -> tuple[Call, Step]:
    """What a policy makes of a call, outside of any model."""
    made.begin(torch.nn.Linear(1, 1), Sites([call.site]), Budget.of(keep))
    step = Step(call, call.m, torch.tensor([call.m]))
    return made.select(step), step


def token_mask(name: str, grid: tuple[int, ...], group: tuple[int, ...], radius: int) -> Tensor:
    """Which image tokens meet, from the words of the paper, pair by pair."""
    axes = [torch.arange(s) for s in grid]
    place = torch.stack([x.flatten() for x in torch.meshgrid(*axes, indexing="ij")], 1)
    box = place // torch.tensor(group)
    level = box[:, None] == box[None]
    if name == "grat_criss_cross":
        return level.any(-1)
    counts = [-(-s // g) for s, g in zip(grid, group, strict=True)]
    near = torch.ones(len(box), len(box), dtype=torch.bool)
    for axis, many in enumerate(counts):
        for own in range(many):
            window = set(range(own - radius, own + radius + 1))
            while min(window) < 0:
                window = {x + 1 for x in window}
            while max(window) >= many and min(window) > 0:
                window = {x - 1 for x in window}
            rows = box[:, axis] == own
            inside = torch.tensor([int(x) in window for x in box[:, axis]])
            near[rows] &= inside
    return near


@given(
    grid=st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple),
    sides=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    text=st.integers(0, 5), radius=st.integers(0, 2), front=st.booleans(),
    name=st.sampled_from(NAMES), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_dense_attention_under_the_token_mask(
    grid: Any, sides: Any, text: int, radius: int, front: bool, name: str, seed: int
) -> None:
    torch.manual_seed(seed)
    group = tuple(min(s, g) for s, g in zip(sides, grid, strict=False))
    call = call_on(grid, text, front=front)
    chosen, _ = selected(policy(name, group=group, radius=radius), call)
    mask = torch.ones(call.n, call.n, dtype=torch.bool)
    image = slice(text, None) if front else slice(0, call.n - text)
    mask[image, image] = token_mask(name, grid, group, radius)
    expected = sdpa(call.q, call.k, call.v, attn_mask=mask)
    torch.testing.assert_close(runner.run(chosen).out, expected, atol=1e-5, rtol=1e-4)


@MODELS
def test_one_group_is_the_whole_model(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, inputs = build(make, 2)
    plain = run(make, model, inputs)
    for name, settings, keep in [
        *((n, {}, 1.0) for n in NAMES),
        *((n, {"group": None, "radius": 99}, 0.1) for n in NAMES[:1]),
    ]:
        with regard.shrink(model, policy(name, **settings), keep=keep, check=False) as shrunk:
            torch.testing.assert_close(run(make, model, inputs), plain, atol=1e-5, rtol=1e-4)
            report = shrunk.report()
        assert report.flops == report.dense_flops > 0
    assert torch.equal(run(make, model, inputs), plain)


@pytest.mark.parametrize("make", [unet, sd3, flux, pixart, wan, hunyuan], ids=lambda f: f.__name__)
def test_a_batch_is_its_rows_and_detaching_leaves_no_trace(make: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    model, inputs = build(make, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain, hooks = run(make, model, inputs), len(model._forward_pre_hooks)
    group = (1, 2, 2) if make in (wan, hunyuan) else (2, 2)
    shared = {"img_ids", "txt_ids"}
    with regard.shrink(model, policy("grat", group=group, radius=0), check=False) as shrunk:
        both = run(make, model, inputs)
        first = {k: x if k in shared else x[:1] for k, x in inputs.items()}
        torch.testing.assert_close(run(make, model, first)[0], both[0], atol=1e-4, rtol=1e-3)
        report = shrunk.report()
    assert not torch.allclose(both, plain)
    # So few tokens cost least when all pairs are computed, and that is what the report says.
    assert report.flops <= report.dense_flops
    assert "of the FLOPs of attention" in str(report)
    assert torch.equal(run(make, model, inputs), plain)
    assert len(model._forward_pre_hooks) == hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_flops_are_counted_call_by_call() -> None:
    """What was computed: all pairs of so small a grid, and queries times words across."""
    torch.manual_seed(0)
    model, inputs = build(pixart, 2)
    with regard.shrink(model, policy("grat", group=(1, 1), radius=0), check=False) as shrunk:
        run(pixart, model, inputs)
        layers = {x.site.module: x for x in shrunk.report().layers}
    each = 2.0 * 2 * 2 * (8 + 8)  # rows, heads, channels of scores and of values
    self_, cross = layers["transformer_blocks.0.attn1"], layers["transformer_blocks.0.attn2"]
    assert (self_.flops, self_.dense_flops) == (each * 36, each * 36)
    assert cross.flops == cross.dense_flops == each * 6 * 5


def test_blocks_of_groups_are_whole() -> None:
    """A group as large as a tile leaves whole tiles out: none is partly computed."""
    call = call_on((32, 32), 0, h=1)
    chosen, _ = selected(policy("grat", group=(8, 8), radius=1), call)
    from regard.run.folding import make_fold

    fold = make_fold(chosen, 0, 0)
    assert all(group.mask is None for layer in fold.layers for group in layer)
    assert fold.pairs == 16 * 9 * 64 * 64


def test_bfloat16_and_padding() -> None:
    torch.manual_seed(0)
    model, inputs = build(hunyuan, 2)
    inputs["encoder_attention_mask"] = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    grat = policy("grat", group=(1, 2, 2), radius=0)
    with regard.shrink(model, grat, check=False):
        full = run(hunyuan, model, inputs)
        changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
        changed["encoder_hidden_states"][0, 3:] += 1  # padding is met by nobody
        torch.testing.assert_close(run(hunyuan, model, changed), full)
    model, inputs = build(wan, 1)
    with regard.shrink(model, policy("grat", group=(1, 2, 2), radius=0), check=False):
        wide = run(wan, model, inputs)
        low = run(wan, model.bfloat16(), {k: x.bfloat16() for k, x in inputs.items()})
    assert (low.float() - wide).norm() < 0.05 * wide.norm()


def test_what_a_policy_cannot_take_is_told() -> None:
    torch.manual_seed(0)
    model, inputs = build(sd3)
    for name, said in (("snapkv", "takes no cache"), ("hip", "not causal")):
        with pytest.raises(CapabilityError, match=said):
            regard.shrink(model, name, check=False)
    text = build_text("llama", DECODERS["llama"], causal=True)
    with pytest.raises(CapabilityError, match="not on a grid"):
        regard.shrink(text, "grat", check=False)
    for settings, said in (({"group": (2,)}, "`group`"), ({"radius": -1}, "`radius`")):
        with (
            regard.shrink(model, policy("grat", **settings), check=False) as shrunk,
            pytest.raises(RegardError, match=said),
        ):
            run(sd3, model, inputs)
        with pytest.raises(CapabilityError, match="`text`"):
            shrunk.report("a red fox")
    model, inputs = build(flux)
    del inputs["img_ids"]
    inputs["img_ids"] = torch.rand(6, 3)  # places that are no grid
    with (
        regard.shrink(model, "grat", check=False),
        pytest.raises(CapabilityError, match="an image of unknown grid"),
    ):
        run(flux, model, inputs)
