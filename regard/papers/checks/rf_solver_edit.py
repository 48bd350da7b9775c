"""Errors fall by four when steps double; injected values rebuild a picture; none change nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.controls.diffusion.rf_solver import rf_edit, rf_solve
from regard.core.errors import need
from regard.papers.checks import Claims, check
from regard.papers.claims import claim

STEPS = 8


def _line(n: int) -> list[float]:
    return [i / n for i in range(n + 1)]


def _errors(order: int, matrix: Tensor, z: Tensor) -> tuple[list[float], float]:
    """Errors with 16 and 32 steps, and that of going there and back in 16."""

    def flow(x: Tensor, t: float) -> Tensor:
        return x @ matrix.T

    exact = z @ torch.linalg.matrix_exp(matrix).T
    apart = [float((rf_solve(flow, z, _line(n), order=order) - exact).norm()) for n in (16, 32)]
    there = rf_solve(flow, z, _line(16), order=order)
    back = rf_solve(flow, there, _line(16)[::-1], order=order)
    return apart, float((back - z).norm())


@check("rf_solver_edit", beyond="pictures and videos of Flux and Open-Sora, and their scores")
@torch.no_grad()
def rf_solver_edit() -> Claims:
    """Errors fall by four when steps double; injected values rebuild a picture."""
    diffusers = need("diffusers", "diffusers", "has the model")
    matrix, z = torch.randn(6, 6, dtype=torch.float64) / 2, torch.randn(4, 6, dtype=torch.float64)
    (second, coarse), (first, rough) = _errors(2, matrix, z), _errors(1, matrix, z)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    latent = torch.randn(1, 4, 8, 12)
    one, other = (
        {"encoder_hidden_states": torch.randn(1, 5, 16), "pooled_projections": torch.randn(1, 16)}
        for _ in range(2)
    )
    apart = [
        float((rf_edit(model, latent, one, one, steps=STEPS, inject=n) - latent).norm())
        for n in (STEPS, 0)
    ]

    def flow(given: dict[str, Tensor]) -> object:
        return lambda x, t: model(
            hidden_states=x, timestep=torch.tensor([1000 * t]), **given, return_dict=False
        )[0]

    # Flow is typed object.
    noise = rf_solve(flow(one), latent, _line(STEPS))  # type: ignore[arg-type]
    plain = rf_solve(flow(other), noise, _line(STEPS)[::-1])  # type: ignore[arg-type]  # as above
    none = rf_edit(model, latent, one, other, steps=STEPS, inject=0)
    some = rf_edit(model, latent, one, other, steps=STEPS, inject=3)
    powers = [math.log2(a / b) for a, b in (second, first)]
    yield claim(
        "global error falls 4x", "powers of two by which the error falls", powers[0]
    ).within(0.3, "four times", value=2.0, because="the limit of small steps")
    yield claim("global error falls 4x", "powers of two by which Euler's falls", powers[1]).within(
        0.3, "two times", value=1.0, because="the limit of small steps"
    )
    yield claim("global error falls 4x", "error there and back", coarse).below(
        rough, "that of Euler", times=0.1, because="far less: a tenth"
    )
    yield claim("same prompt plus injection", "error of a picture rebuilt", apart[0]).at_most(
        apart[1], "that without injection"
    )
    yield claim("n=0 equals plain sampling", "pictures equal", torch.equal(none, plain)).equals(
        True, "those of plain sampling"
    )
    yield claim("n=0 equals plain sampling", "change that three injected steps make",
                float((some - none).abs().max())).above(0, "none")  # fmt: skip
