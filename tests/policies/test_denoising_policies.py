"""Policies over the steps of denoising: none at full budget, gates, windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import functools
import operator

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.models import Null
from regard.models.attach import attach
from regard.models.diffusers import branches
from regard.policies import policy
from regard.policies.denoising import Settling
from regard.policies.shrinking import Shrinking
from tests.diffusion import build, flux, hunyuan, ltx, pixart, sd3, unet, wan
from tests.models.test_denoising import ready, with_unet, with_wan
from tests.policies.test_grids import call_on, run, selected

HALVES = ("unconditional", "conditional")
CROSS = [unet, pixart, wan, ltx]
by_name = {"ids": lambda f: f.__name__}
# Settings at which each would change something on a tiny model.
SHARP: dict[str, dict[str, Any]] = {
    "adaspa": {"block": 2, "searches": (0, 2), "least": 2}, "tgate": {"gate": 2},
    "freeswim": {"window": (1, 1)}, "dgq": {"bits": 2}, "efficient_vdit_tile": {},
}  # fmt: skip
REFUSED = [(unet, "freeswim"), *((hunyuan, name) for name in ("tgate", "freeswim", "dgq"))]
every = pytest.mark.parametrize("name", SHARP)


def denoised(
    make: Callable[..., Any], model: Any, inputs: dict[str, Any], steps: int = 4
) -> Tensor:
    """Outputs of some forwards, one after another: [steps, ...]."""
    return torch.stack([run(make, model, inputs, 9 - i) for i in range(steps)])


@contextmanager
def counted(model: Any, kind: str) -> Iterator[list[int]]:
    """Rows of each run of the projections of queries at the sites of a kind."""
    rows: list[int] = []
    sites = [s for s in attach(model).sites if s.kind == kind]
    handles = [
        model.get_submodule(s.module).to_q.register_forward_hook(
            lambda _, args, __: rows.append(len(args[0]))
        )
        for s in sites
    ]
    yield rows
    for handle in handles:
        handle.remove()


@every
@pytest.mark.parametrize("make", [*CROSS, hunyuan], **by_name)
def test_at_full_budget_a_model_is_itself(make: Callable[..., Any], name: str) -> None:
    """To the bit, where it has no mask on its words, whose kernel is another one."""
    torch.manual_seed(0)
    model, inputs = build(make, 2)
    plain = denoised(make, model, inputs)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if (make, name) in REFUSED:
        with pytest.raises(CapabilityError, match=r"cross-attention|resolutions"):
            regard.shrink(model, policy(name, **SHARP[name]), keep=1.0, check=False)
        return
    shrunk = regard.shrink(model, policy(name, **SHARP[name]), keep=1.0, check=False)
    with shrunk, branches(*HALVES):
        found = denoised(make, model, inputs)
        if make in (pixart, ltx):
            torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(found, plain)
        report = shrunk.report()
        assert report.flops == report.dense_flops
    assert torch.equal(denoised(make, model, inputs), plain)
    assert "forward" not in vars(model)
    assert not any("forward" in vars(m) for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@every
def test_a_stage_beside_it_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = build(wan, 2)
    with (
        regard.shrink(model, policy(name, **SHARP[name]), keep=0.5, check=False),
        branches(*HALVES),
    ):
        alone = denoised(wan, model, inputs)
    stage = Shrinking([policy(name, **SHARP[name])], 0.5)
    with attach(model, [stage, Null()], check=False), branches(*HALVES):
        torch.testing.assert_close(denoised(wan, model, inputs), alone, atol=1e-5, rtol=1e-5)


# Cross-attention that is kept


@pytest.mark.parametrize("make", CROSS, **by_name)
def test_behind_the_gate_words_have_no_say_and_half_the_rows_run(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, inputs = build(make, 2)
    layers = sum(s.kind == "cross" for s in attach(model).sites)
    plain = denoised(make, model, inputs)
    words = inputs["encoder_hidden_states"]
    with (
        counted(model, "cross") as cross,
        counted(model, "self") as own,
        regard.shrink(model, policy("tgate", gate=2), check=False) as shrunk,
        branches(*HALVES),
    ):
        found = [run(make, model, inputs, 9 - i) for i in range(2)]
        inputs["encoder_hidden_states"] = words + 5
        found += [run(make, model, inputs, 7 - i) for i in range(2)]
        report = shrunk.report()
        again = denoised(make, model, {**inputs, "encoder_hidden_states": words})
    torch.testing.assert_close(torch.stack(found[:2]), plain[:2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again, torch.stack(found), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found[3], plain[3], atol=1e-4)
    assert torch.equal(found[2][0], found[2][1])  # every branch has what the conditional one has
    assert cross == [2] * layers * 4  # two steps of each denoising
    selfs = len(own) // 8
    assert own == 2 * ([2] * 2 * selfs + [1] * 2 * selfs)
    by_kind = {
        kind: [x for x in report.layers if x.site.kind == kind] for kind in ("self", "cross")
    }
    assert all(2 * x.flops == x.dense_flops for x in by_kind["cross"])
    assert all(4 * x.flops == 3 * x.dense_flops for x in by_kind["self"])


def test_behind_the_gate_outputs_have_no_gradient_of_the_words() -> None:
    torch.manual_seed(0)
    model, inputs = build(pixart, 2)
    words = inputs["encoder_hidden_states"].requires_grad_()
    with regard.shrink(model, policy("tgate", gate=1), check=False), branches(*HALVES):
        grads = []
        for time in (9, 8):
            out = model(**inputs, timestep=torch.tensor([time, time]), return_dict=False)[0]
            grads.append(torch.autograd.grad(out.sum(), words, allow_unused=True)[0])
    assert float(grads[0].abs().max()) > 0
    assert grads[1] is None or not bool(grads[1].any())


def test_what_stands_in_is_the_mean_of_both_branches() -> None:
    torch.manual_seed(0)
    model, inputs = build(wan, 2)
    held: dict[str, Tensor] = {}
    places = [s.module for s in attach(model).sites if s.kind == "cross"]
    handles = [
        model.get_submodule(p).register_forward_hook(
            lambda _, __, out, p=p: held.__setitem__(p, out.clone())
        )
        for p in places
    ]
    with regard.shrink(model, policy("tgate", gate=1), check=False), branches(*HALVES):
        run(wan, model, inputs, 9)
        first = dict(held)
        run(wan, model, inputs, 8)
    for place in places:
        torch.testing.assert_close(held[place], first[place].mean(0, keepdim=True))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("make", [with_unet, with_wan], **by_name)
def test_a_pipeline_drops_its_guidance(make: Callable[[], Any]) -> None:
    """Steps before the gate are the pipeline's; behind it one row runs."""
    torch.manual_seed(0)
    held: list[Any] = []
    _, go = ready(lambda: held.append(make()) or held[-1])
    pipeline, model, told = held[0]
    plain = go()
    with counted(model, "self") as own:
        with regard.shrink(pipeline, policy("tgate", gate=2), check=False):
            found = go()
        rows = list(own)
        with regard.shrink(pipeline, policy("tgate", gate=1), check=False):
            low = go()
            told["guidance_scale"] = 7.0
            high = go()
    told["guidance_scale"] = 4.0
    layers = sum(s.kind == "self" for s in attach(model).sites)
    each = [[2] * layers] * 2 if make is with_unet else [[1] * 2 * layers] * 2
    assert rows == functools.reduce(operator.iadd, [*each, [1] * layers], [])
    for a, b in zip(found[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[2], plain[2], atol=1e-4)
    assert not torch.allclose(low[0], high[0], atol=1e-4)
    for a, b in zip(go(), plain, strict=True):
        assert torch.equal(a, b)
    assert "encode_prompt" not in vars(pipeline)


def test_gates_tell_what_they_need() -> None:
    torch.manual_seed(0)
    model, inputs = build(pixart, 2)
    with (
        regard.shrink(model, policy("tgate", gate=1), check=False),
        pytest.raises(CapabilityError, match="guidance"),
    ):
        run(pixart, model, inputs)
    with regard.shrink(model, policy("tgate", gate=1), check=False), branches(*HALVES):
        denoised(pixart, model, inputs, 2)
        _, more = build(pixart, 4)
        with pytest.raises(CapabilityError, match="one batch"):
            run(pixart, model, more, 5)
    for make, name, said in ((flux, "tgate", "no cross"), (unet, "freeswim", "resolutions"),
                             (sd3, "dgq", "no cross"), (sd3, "freeswim", "no cross")):  # fmt: skip
        other, _ = build(make)
        with pytest.raises(CapabilityError, match=said):
            regard.shrink(other, policy(name, **SHARP[name]), check=False)
    for name, settings in (
        ("tgate", {"gate": 0}), ("freeswim", {}), ("freeswim", {"window": (3, 3), "every": 0}),
        ("adaspa", {"searches": (3, 1)}), ("dgq", {"bits": 0}),
    ):  # fmt: skip
        with pytest.raises(RegardError):
            regard.shrink(model, policy(name, **settings), check=False)


def test_settling_tells_how_much_changes() -> None:
    torch.manual_seed(0)
    model, inputs = build(pixart, 1)
    with attach(model, [settling := Settling()], check=False):
        for time in (900, 899, 500):
            run(pixart, model, inputs, time)
    small, large = settling.by_step()
    assert 0 < small < large


# Windows of the trained size


@given(h=st.integers(1, 9), w=st.integers(1, 9), a=st.integers(1, 9), b=st.integers(1, 9))
def test_every_query_meets_a_window_of_the_trained_size(h: int, w: int, a: int, b: int) -> None:
    torch.manual_seed(0)
    call = call_on((2, h, w), 0, h=1)
    chosen, _ = selected(policy("freeswim", window=(a, b)), call)
    counts = chosen.rule.support.matrix(call.n).sum(-1).unique().tolist()
    sides = [min(2 * (t // 2) + 1, s) for t, s in ((a, h), (b, w))]
    assert counts == [2 * sides[0] * sides[1]]
    if sides == [h, w]:
        assert chosen is call


@pytest.mark.parametrize("make", [pixart, wan, ltx], **by_name)
def test_the_full_branch_overrides(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, inputs = build(make, 2)
    cross: dict[str, list[Tensor]] = {}
    for site in attach(model).sites:
        if site.kind == "cross":
            model.get_submodule(site.module).register_forward_hook(
                lambda _, __, out, m=site.module: cross.setdefault(m, []).append(out.clone())
            )
    plain = run(make, model, inputs)
    cross.clear()
    swim = policy("freeswim", window=(1, 1), ratio=1.0)
    with regard.shrink(model, swim, check=False) as shrunk:
        first, second = run(make, model, inputs, 9), run(make, model, inputs, 8)
        with branches("unconditional"):
            run(make, model, inputs, 7)
            assert shrunk.report().dense_flops > 0
        with branches(*HALVES):
            halves = run(make, model, inputs, 6)
    assert not torch.allclose(first, plain)
    one = next(iter(cross.values()))
    assert torch.equal(one[0], one[1])  # full, and windows that take what it gave
    assert torch.equal(one[2], one[0])  # kept until the next time
    assert not torch.equal(one[3], one[0])  # unconditional: its own
    assert second.isfinite().all()
    assert halves.isfinite().all()


def test_windows_that_cover_all_change_nothing() -> None:
    torch.manual_seed(0)
    model, inputs = build(wan, 1)
    plain = run(wan, model, inputs)
    with regard.shrink(model, policy("freeswim", window=(3, 3)), check=False) as shrunk:
        assert torch.equal(run(wan, model, inputs), plain)
        assert shrunk.report().flops == shrunk.report().dense_flops


def test_flops_of_both_branches_count_and_the_whole_model_counts_once() -> None:
    torch.manual_seed(0)
    model, inputs = build(pixart, 1)  # a grid of 2 x 3
    swim = policy("freeswim", window=(1, 1), every=2)
    with regard.shrink(model, swim, check=False) as shrunk:
        denoised(pixart, model, inputs, 2)
        layers = {x.site.module: x for x in shrunk.report().layers}
    each = 2.0 * 2 * (8 + 8)
    own, cross = layers["transformer_blocks.0.attn1"], layers["transformer_blocks.0.attn2"]
    assert own.flops == each * (36 + 36 + 36)  # windows on so small a grid are computed whole
    assert own.dense_flops == each * 36 * 2
    assert (cross.flops, cross.dense_flops) == (each * 6 * 5, each * 6 * 5 * 2)
