"""What asks a layer for an ability, one attempt for each: a layer without it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from regard.conformance.cases import cases_of


def _made(name: str, **settings: Any) -> object:
    kind = cases_of(name)[0].kind
    return kind(**{**kind.tiny, **settings})


def _bidirectional(name: str) -> object:
    kind = cases_of(name)[0].kind
    settings = {key: x for key, x in kind.tiny.items() if key != "context_dim"}
    return kind(**{**settings, "causal": False})


def _ran(name: str, **around: Callable[[int, int], torch.Tensor]) -> object:
    """Run the first mode of a layer with tensors made of the lengths of x and of its context."""
    case = cases_of(name)[0]
    inputs = case.inputs(batch=1, dtype=torch.float32)
    n, m = inputs["x"].shape[1], inputs.get("context", inputs["x"]).shape[1]
    return case.make(torch.float32)(**inputs, **{key: make(n, m) for key, make in around.items()})


def _real(n: int, m: int) -> torch.Tensor:
    return torch.ones(1, m, dtype=torch.bool)


def _late(n: int, m: int) -> torch.Tensor:
    return torch.arange(m)[None] > 0


def _documents(name: str) -> object:
    ids: dict[str, Callable[[int, int], torch.Tensor]] = {
        "documents": lambda n, m: torch.zeros(1, n, dtype=torch.long)
    }
    if cases_of(name)[0].mode == "cross":
        ids["context_documents"] = lambda n, m: torch.zeros(1, m, dtype=torch.long)
    return _ran(name, **ids)


def _without_data(name: str) -> object:
    case = cases_of(name)[0]
    inputs = case.inputs(dtype=torch.float32)
    return case.make(torch.float32).to("meta")(**{key: x.to("meta") for key, x in inputs.items()})


def _mapped(name: str) -> object:
    case = cases_of(name)[0]
    layer, inputs = case.make(), case.inputs()

    def run(*rows: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer(**{key: x[None] for key, x in zip(inputs, rows, strict=True)})
        return y

    return torch.func.vmap(run)(*inputs.values())


REFUSALS: dict[str, Callable[[str], object]] = {
    "causal": lambda name: _made(name, causal=True),
    "bidirectional": _bidirectional,
    "cross": lambda name: _made(name, causal=False, context_dim=cases_of(name)[0].kind.tiny["dim"]),
    "decode": lambda name: cases_of(name)[0].make(torch.float32).memory(),
    "padding": lambda name: _ran(name, padding=_real),
    "left_padding": lambda name: _ran(name, padding=_late),
    "documents": _documents,
    "meta": _without_data,
    "vmap": _mapped,
}
