"""RF-Solver and RF-Edit: second-order rectified flow, with values kept from the inversion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import PICTURE
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.models.attach import attach
from regard.models.stage import Stage

Velocity = Callable[[Tensor, float], Tensor]


def rf_solve(velocity: Velocity, z: Tensor, times: Sequence[float], *, order: int = 2) -> Tensor:
    """Integrate dz/dt = velocity(z, t) over `times`, with steps of first (Euler) or second order.

    The second order evaluates the velocity twice per step, and adds dt^2 / 2 times its slope. Times
    that rise from 0 to 1 invert a picture to noise; falling times sample.

    >>> flow = lambda z, t: -z
    >>> z = rf_solve(flow, torch.ones(1), [i / 10 for i in range(11)])
    >>> abs(float(z) - 0.36788) < 1e-3
    True
    """
    if order not in (1, 2):
        fail(ValueRangeError, "order", shape_of(order), "1 (Euler) or 2", "pass order=2")
    if len(times) < 2 or any(a == b for a, b in pairwise(times)):
        fail(ValueRangeError, "times", list(times), "two or more different times", "pass [1, 0]")
    for now, then in pairwise(times):
        dt = then - now
        first = velocity(z, now)
        if order == 1:
            z = z + dt * first
            continue
        middle = velocity(z + dt / 2 * first, now + dt / 2)
        slope = (middle - first) / (dt / 2)
        z = z + dt * first + dt**2 / 2 * slope
    return z


class _KeptValues(Stage):
    """Record the values of the picture by site and time, and later inject them."""

    def __init__(self, where: Any) -> None:
        super().__init__({"kinds": PICTURE} if where is None else where)
        self.kept: dict[str, dict[float, Tensor]] = {}
        self.time: float | None = None
        self.records = True

    def before(self, call: Call) -> Call:
        """Record the values, or inject those recorded at the nearest time."""
        if self.time is None or call.site is None:
            return call
        own = EditContext(call, Prompt()).tokens_at("keys", "image")
        kept = self.kept.setdefault(call.site.module, {})
        if self.records:
            kept[self.time] = call.v[:, :, own].detach().clone()
            return call
        time = self.time
        v = call.v.clone()
        v[:, :, own] = kept[min(kept, key=lambda t: abs(t - time))].to(v)
        return call.replace(v=v)


@method(
    "rf_solver_edit",
    call="from regard.controls.diffusion.rf_solver import rf_edit\n"
    "rf_edit(model, latents, inputs, inputs, steps=4, inject=2)",
)
@torch.no_grad()
def rf_edit(
    model: nn.Module, latents: Tensor, source: Mapping[str, Any], target: Mapping[str, Any], *,
    steps: int = 15, inject: int = 3, order: int = 2, where: Any = None,
    scale: float = 1000.0,
) -> Tensor:  # fmt: skip
    """Invert latents under one prompt, and sample them again under another, keeping structure.

    `source` and `target` are the other arguments of the model, for one branch without guidance,
    except the timestep, which is `scale` times the share of noise. In the first `inject` steps of
    sampling, values of the picture are those of the inversion at the same times and positions, in
    the sites of `where` (usually late blocks; all by default). 0 injects nothing. (RF-Solver and
    RF-Edit, Wang et al. 2024)

        edited = rf_edit(transformer, latents, {"encoder_hidden_states": cat, ...},
                         {"encoder_hidden_states": dog, ...}, where={"layers": range(38, 57)})
    """
    for name, x, least in (("steps", steps, 1), ("inject", inject, 0)):
        if isinstance(x, bool) or not isinstance(x, int) or x < least:
            fail(ValueRangeError, name, shape_of(x), f"a whole number from {least}", "pass 15, 3")
    if inject > steps:
        fail(ValueRangeError, "inject", inject, f"at most the {steps} steps", "inject fewer")
    names = inspect.signature(type(model).forward).parameters
    name = "sample" if "sample" in names else "hidden_states"
    stage = _KeptValues(where)
    rising = [i / steps for i in range(steps + 1)]

    threshold = 1 - inject / steps

    def velocity(given: Mapping[str, Any], records: bool) -> Velocity:
        def flow(z: Tensor, t: float) -> Tensor:
            stage.records = records
            stage.time = t if t > threshold + 1e-9 else None
            time = torch.full((len(z),), scale * t, device=z.device)
            made = model(**{**given, name: z, "timestep": time, "return_dict": False})
            found: Tensor = made[0]
            return found

        return flow

    with attach(model, stage, check=False):
        noise = rf_solve(velocity(source, True), latents, rising, order=order)
        return rf_solve(velocity(target, False), noise, rising[::-1], order=order)
