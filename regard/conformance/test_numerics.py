"""The laws of gradients, precision, copies, compiled code and cost."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import (
    CompilationMetrics,
    clear_compilation_metrics,
    get_compilation_metrics,
)
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from regard.conformance.cases import EQUAL, Case, cases_of_kind, largest_gap, needs
from regard.layers.base import Layer

# Half precision: the median token differs by less than this share of a usual output.
HALF = 0.03


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def test_gradients_reach_every_parameter(case: Case) -> None:
    layer = case.make().train()
    y = layer(**case.inputs())
    (y * torch.randn_like(y)).sum().backward()
    missed = [
        name
        for name, p in layer.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert not missed


def test_gradients_are_right(case: Case) -> None:
    layer = case.make()
    inputs = case.inputs(batch=1, tokens=6 if case.kind.can.any_length else None)
    for x in inputs.values():
        x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: layer(**dict(zip(inputs, given, strict=True))),
        tuple(inputs.values()),
        fast_mode=True,
        atol=1e-4,
    )


def test_bfloat16_is_close(case: Case) -> None:
    rough = case.make(torch.bfloat16)
    fine = copy.deepcopy(rough).float()
    inputs = case.inputs(dtype=torch.bfloat16)
    found, wanted = (
        rough(**inputs).float(),
        fine(**{name: x.float() for name, x in inputs.items()}),
    )
    # Choices (top-k, routing) may turn out otherwise for some tokens, never for most.
    off = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).mean()
    assert off.median() < 0.03


def test_weights_and_copies_carry_all(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    wanted = layer(**inputs)
    assert torch.equal(copy.deepcopy(layer)(**inputs), wanted)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = case.kind(
        **{**case.kind.tiny, "causal": layer.causal,
           **({"context_dim": layer.context_dim} if case.mode == "cross" else {})}
    ).double().eval()  # fmt: skip
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(**inputs), wanted)


# Frames of these are planning, checks and executors.
NEVER_TRACED = ("run/plan", "run/runner", "run/reference", "run/chunked", "run/fused",
                "core/score", "core/call_checks")  # fmt: skip


def place_of(metrics: CompilationMetrics) -> str:
    """Return the file in the package whose frame was compiled."""
    return str(metrics.co_filename).rpartition("/regard/")[2]


def test_compiled_code_says_the_same(kind: type[Layer]) -> None:
    case = cases_of_kind(kind)[0]
    layer, inputs = case.make(), case.inputs()
    wanted = layer(**inputs)
    torch.compiler.reset()
    clear_compilation_metrics()
    compiled = torch.compile(layer, backend="aot_eager")
    x = inputs["x"].requires_grad_()
    found = compiled(**inputs)
    assert largest_gap(found, wanted) < EQUAL
    found.sum().backward()
    assert x.grad is not None
    # The runner and what it reads stay out of the compiler: it would cut them to dozens of pieces.
    assert not [x for x in map(place_of, get_compilation_metrics()) if x.startswith(NEVER_TRACED)]


@needs("linear", "any_length")
def test_cost_grows_with_the_length(case: Case) -> None:
    layer, flops = case.make(torch.float32), []
    for tokens in (512, 2048):
        inputs = case.inputs(batch=1, tokens=tokens, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(**inputs)
        flops.append(counter.get_total_flops())
    assert flops[1] <= 4 * 1.15 * flops[0], f"FLOPs at 512 and 2,048 tokens: {flops}"


@pytest.mark.parametrize("tokens", ["float32", "bfloat16"])
def test_autocast_is_close(case: Case, tokens: str) -> None:
    layer, inputs = case.make(torch.float32), case.inputs(dtype=torch.float32)
    dtype = getattr(torch, tokens)
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    wanted = layer(**{name: x.float() for name, x in inputs.items()})
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(**inputs)
    assert found.dtype == torch.bfloat16, "as a linear map under autocast"
    off = (found.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1).mean()
    assert off.median() < HALF
    found.float().square().sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert grads
    assert not [name for name, grad in grads.items() if not grad.isfinite().all()]


@needs("decode", modes=("causal", "cross"))
def test_decoding_under_autocast_is_close(case: Case) -> None:
    layer, inputs = case.make(torch.float32), case.inputs(dtype=torch.float32)
    wanted, memory, found = layer(**inputs), layer.memory(), []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, case.tokens, 5):
            context = {"context": inputs["context"]} if "context" in inputs and not start else {}
            x = inputs["x"][:, start : start + 5]
            found.append(layer(x, memory=memory, **context).float())
    off = (torch.cat(found, 1) - wanted).norm(dim=-1) / wanted.norm(dim=-1).mean()
    assert off.median() < HALF


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved_hooks", "reentrant"])
def test_checkpointing_changes_nothing(case: Case, reentrant: bool) -> None:
    """The checkpointed step comes first: a plan, a rule or a cache may be made inside of it."""
    inputs = case.inputs()

    def step(checkpointed: bool) -> dict[str, Tensor | None]:
        layer = case.make().train()
        given = {name: x.clone().requires_grad_() for name, x in inputs.items()}

        def run(*tensors: Tensor) -> Tensor:
            y: Tensor = layer(**dict(zip(given, tensors, strict=True)))
            return y

        torch.manual_seed(2)  # dropout, and choices that are drawn
        tensors = tuple(given.values())
        y = checkpoint(run, *tensors, use_reentrant=reentrant) if checkpointed else run(*tensors)
        torch.manual_seed(3)
        (y * torch.randn_like(y)).sum().backward()
        return {
            "y": y,
            **{f"grad of {name}": x.grad for name, x in given.items()},
            **{f"grad of {name}": p.grad for name, p in layer.named_parameters()},
            **dict(layer.named_buffers()),
        }

    found, wanted = step(True), step(False)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        y = found[name]
        same = x is y if x is None or y is None else torch.equal(x, y)
        assert same, name
