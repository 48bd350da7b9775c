"""The laws of transforms: tensors without data, `torch.func`, second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from regard.conformance.cases import EQUAL, Case, largest_gap, needs
from regard.core.errors import RegardError
from regard.layers.base import Layer

Run = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def one_row(layer: Layer, inputs: dict[str, Tensor]) -> Run:
    """Run a layer on rows without a batch: x [n, dim], and the context where there is one."""

    def run(parameters: dict[str, Tensor], *rows: Tensor) -> Tensor:
        given = {name: row[None] for name, row in zip(inputs, rows, strict=True)}
        y: Tensor = functional_call(layer, parameters, (), given)
        return y[0]

    return run


@needs("meta")
def test_shapes_are_computed_without_data(case: Case) -> None:
    layer = case.make(torch.float32).to("meta")
    inputs = {name: x.to("meta") for name, x in case.inputs(dtype=torch.float32).items()}
    y = layer(**inputs)
    assert y.device.type == "meta"
    assert y.shape == inputs["x"].shape


def test_functional_gradients_equal_those_of_autograd(case: Case) -> None:
    layer, inputs = case.make(), case.inputs()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    weights = torch.randn_like(inputs["x"])

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = functional_call(layer, parameters, (), inputs)
        return (y * weights).sum()

    found = grad(loss)(parameters)
    (layer(**inputs) * weights).sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        gap = (found[name] - p.grad).abs().max()
        assert gap < EQUAL * (1 + p.grad.abs().max()), name


@needs("vmap")
def test_gradients_of_each_row_equal_those_of_a_loop(case: Case) -> None:
    layer, inputs = case.make(), case.inputs(batch=3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    run = one_row(layer, inputs)

    def loss(parameters: dict[str, Tensor], *rows: Tensor) -> Tensor:
        return run(parameters, *rows).square().sum()

    axes = (None, *[0] * len(inputs))
    assert largest_gap(vmap(run, axes)(parameters, *inputs.values()), layer(**inputs)) < EQUAL
    found = vmap(grad(loss), axes)(parameters, *inputs.values())
    for row in range(3):
        wanted = grad(loss)(parameters, *(x[row] for x in inputs.values()))
        for name, x in wanted.items():
            gap = (found[name][row] - x).abs().max()
            assert gap < EQUAL * (1 + x.abs().max()), name  # some are zero, but for rounding


@needs("exact_gradients")
def test_forward_derivatives_equal_differences(case: Case) -> None:
    layer, inputs = case.make(), case.inputs(batch=1)
    along = tuple(torch.randn_like(x) for x in inputs.values())

    def run(*tensors: Tensor) -> Tensor:
        y: Tensor = layer(**dict(zip(inputs, tensors, strict=True)))
        return y

    with torch.no_grad():
        _, found = jvp(run, tuple(inputs.values()), along)
        step = 1e-6
        ahead, behind = (
            run(*(x + sign * step * t for x, t in zip(inputs.values(), along, strict=True)))
            for sign in (1, -1)
        )
    off = (found - (ahead - behind) / (2 * step)).abs() / found.square().mean().sqrt()
    # Choices (top-k, rounding) jump at some tokens, and have no derivative there.
    assert off.median() < 1e-4


@needs("exact_gradients")
def test_second_derivatives_are_right_or_refused(case: Case) -> None:
    """PyTorch's fused kernels have none, and say so; its math backend does. Ours refuse."""
    layer = case.make()
    inputs = case.inputs(batch=1, tokens=6 if case.kind.can.any_length else None)
    name, x = list(inputs.items())[-1]  # the context, where there is one
    x.requires_grad_()
    weights, step, along = torch.randn_like(x), 1e-6, torch.randn_like(x)

    def slope(x: Tensor, create: bool) -> Tensor:
        y = layer(**{**inputs, name: x})
        (found,) = torch.autograd.grad((y * y).sum(), x, create_graph=create)
        return (found * weights).sum()

    with sdpa_kernel(SDPBackend.MATH):
        try:
            (second,) = torch.autograd.grad(slope(x, True), x)
        except RegardError as refused:
            second = None if refused.argument == "create_graph" else x.new_full((), torch.nan)
        ahead, behind = (slope((x + s * step * along).detach().requires_grad_(), False)
                         for s in (1, -1))  # fmt: skip
    wanted = (ahead - behind) / (2 * step)
    near = 1e-4 * (0.0 if second is None else float(second.norm()))
    found = wanted if second is None else (second * along).sum()
    assert torch.allclose(found, wanted, rtol=1e-3, atol=near)
