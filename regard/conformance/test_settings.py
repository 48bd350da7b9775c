"""The law of settings: what attention may be told, a layer does, or refuses by its name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.conformance.cases import EQUAL, Case, largest_gap
from regard.conformance.settings import SETTINGS
from regard.core.errors import RegardError
from regard.layers.base import Layer

# What a layer does anyway, unless told otherwise.
DEFAULTS = {
    "hymba": {"rotary"}, "seqboat_sma": {"rotary", "kv_heads"}, "gqa": {"kv_heads"},
    "sigmoid_attention": {"qk_norm"}, "mega": {"kv_heads"}, "mega_chunk": {"kv_heads"},
    "mega_laplace": {"kv_heads"}, "hymba_stack": {"rotary"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def test_a_setting_is_followed_or_refused(case: Case, setting: str) -> None:
    inputs = case.inputs()
    try:
        layer = case.make(**SETTINGS[setting])
        layer.train()(**inputs)
    except RegardError as refused:
        said = str(refused)
    else:
        said = follows(layer, case, setting, inputs)
    assert said, f"{setting} is neither followed nor refused"


def follows(layer: Layer, case: Case, setting: str, inputs: dict[str, Tensor]) -> str:
    """Try that a setting changes something, and that it does so while decoding too."""
    layer(**inputs).sum().backward()
    plain = case.make().train()
    shapes = {name: x.shape for name, x in layer.state_dict().items()}
    if shapes == {name: x.shape for name, x in plain.state_dict().items()}:
        layer.load_state_dict(plain.state_dict())
        if setting not in DEFAULTS.get(case.name, set()):
            assert not torch.equal(layer(**inputs), plain(**inputs)), "the setting does nothing"
    if case.kind.can.decode and case.mode == "causal":
        memory = layer.eval().memory()
        with torch.no_grad():
            pieces = [layer(x, memory=memory) for x in inputs["x"].split(5, 1)]
        assert largest_gap(torch.cat(pieces, 1), layer(**inputs)) < EQUAL, "decoding differs"
    return "followed"
