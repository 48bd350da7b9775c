"""What policies leave out of long prompts and large grids is not computed: counted as it is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import regard
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.forward import Forward
from regard.models.site import Site
from regard.policies import policy
from regard.policies.base import Step
from regard.run.counting import counted
from regard.run.runner import run
from tests.architectures import sharp_llama
from tests.policies.test_grids import call_on, selected
from tests.policies.test_laws import prepared

IDS = torch.randint(5, 60, (1, 2048), generator=torch.Generator().manual_seed(0))
# The budget, and the most that may be computed of what a causal model computes.
PROMPTS = {
    "a_shape": (0.1, 0.15),
    "vertical_slash": (0.1, 0.2),
    "block_sparse": (0.1, 0.2),
    "hip": (0.1, 0.2),
    "minference": (0.1, 0.2),
    "seer_attention": (0.1, 0.35),
    "s2": (0.1, 0.35),
    "duo_attention": (0.1, 0.4),
    "lserve": (0.1, 0.65),
}
GRIDS: dict[str, tuple[tuple[int, ...], dict[str, Any], float]] = {
    "grat": ((48, 48), {"group": (8, 8)}, 0.3),
    "grat_criss_cross": ((48, 48), {"group": (8, 8)}, 0.35),
    "attention_tile": ((8, 16, 16), {}, 0.4),
    "freeswim": ((2, 32, 32), {"window": (9, 9)}, 0.3),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(2)


def share(call: Call) -> float:
    """Pairs that are computed, of all."""
    before = counted()
    run(call)
    return counted().less(before).pairs / (call.b * call.h * call.n * call.m)


@pytest.mark.parametrize("name", PROMPTS)
@torch.no_grad()
def test_prompts_compute_less(name: str, model: Any) -> None:
    keep, most = PROMPTS[name]
    settings = {"block": 64} if name == "s2" else {}
    with regard.shrink(model, prepared(name, model, **settings), keep=keep, check=False) as shrunk:
        model(IDS)
        report = shrunk.report()
    assert 0 < report.flops < most * report.dense_flops


@torch.no_grad()
def test_prompts_compute_less_in_a_stack(model: Any) -> None:
    stack = [policy("snapkv", keep=0.5), policy("quantized", bits=8, group=8, residual=8),
             policy("block_sparse", keep=0.25)]  # fmt: skip
    with regard.shrink(model, stack, check=False) as shrunk:
        model(IDS)
        report = shrunk.report()
    assert report.bytes < 0.35 * report.full_bytes
    assert report.flops < 0.5 * report.dense_flops


def test_queries_that_choose_alike_compute_what_they_choose() -> None:
    """Queries of MoBA choose one by one: where neighbors differ, few tiles are left out."""
    torch.manual_seed(0)
    site = Site(0, "self", "layer", 2, 2, 16, causal=True)
    q, k, v = torch.randn(3, 1, 2, 4096, 16)
    shares = []
    for common in (0.0, 8.0):
        like = q + common * torch.randn(1, 2, 1, 16)
        call = Call.of(like, k, v, Rule(Causal()), site=site)
        shares.append(share(selected(policy("moba"), call, 0.1)[0]))
    assert shares[0] < 0.5  # of a causal call
    assert shares[1] < 0.1


@pytest.mark.parametrize("name", GRIDS)
def test_grids_compute_less(name: str) -> None:
    grid, settings, most = GRIDS[name]
    torch.manual_seed(0)
    call = call_on(grid, 0)
    assert share(call) == 1
    assert share(selected(policy(name, **settings), call, 0.25)[0]) < most


def test_blocks_that_were_found_are_all_that_is_computed() -> None:
    torch.manual_seed(0)
    call, grid = call_on((48, 48), 0), (48, 48)
    spa = policy("adaspa", searches=(0, 5))
    assert selected(spa, call)[0] is call  # the first step searches, and is dense
    spa.run(call)
    later = call.replace(forward=Forward(1, grid=grid))
    step = Step(later, later.m, torch.tensor([later.m]))
    assert share(spa.select(step)) == pytest.approx(0.25)
