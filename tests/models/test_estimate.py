"""What is estimated before a run is what the run then takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regard
from regard.models import Stage, attach

pytest.importorskip("transformers")

from tests.architectures import DECODERS, build

WANTS = [("entropy",), ("received", "entropy"), ("tiles",), ("entropy", "received", "tiles", "top")]


class Weigh(Stage):
    """Counts the bytes of surveys."""

    def __init__(self, want: tuple[str, ...]) -> None:
        super().__init__()
        self.want, self.nbytes = want, 0

    def see(self, call: Any, result: Any) -> None:
        self.nbytes += sum(x.numel() * x.element_size() for x in result.survey.found.values())


@pytest.mark.parametrize("want", WANTS, ids=" ".join)
@pytest.mark.parametrize(("batch", "n"), [(1, 64), (2, 128)])
def test_bytes_are_those_of_the_run(want: tuple[str, ...], batch: int, n: int, seed: int) -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    ids, stage = torch.randint(5, 60, (batch, n)), Weigh(want)
    said = regard.estimate(model, n, want, batch=batch)
    with torch.no_grad(), attach(model, [stage], check=False):
        out = model(ids, use_cache=True, output_attentions=True)
    layers = out.past_key_values.layers
    assert said.kv_bytes == sum(x.keys.nbytes + x.values.nbytes for x in layers)
    assert said.weights_bytes == sum(x.nbytes for x in out.attentions)
    assert said.survey_bytes == stage.nbytes
    assert said.seconds > 0
    assert said.guessed == 0


def test_long_inputs_cost_their_square_and_surveys_do_not() -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    a, b = (regard.estimate(model, n, ("entropy", "received")) for n in (1024, 4096))
    assert b.flops == 16 * a.flops
    assert b.weights_bytes == 16 * a.weights_bytes
    assert b.survey_bytes == 4 * a.survey_bytes
    assert b.kv_bytes == 4 * a.kv_bytes
    assert "4,096 tokens" in str(b)


def test_a_head_size_that_is_not_told_is_said() -> None:
    class Written(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    said = regard.estimate(nn.Sequential(Written(), nn.MultiheadAttention(8, 2)), 64)
    assert said.guessed == 1
    assert "head size of 1 sites assumed" in str(said)


@pytest.mark.parametrize(
    "how", [{"n": 0}, {"n": 2.5}, {"n": True}, {"n": 8, "batch": 0}, {"n": 8, "want": ("moon",)}]
)
def test_what_cannot_be_estimated_is_told(how: dict[str, Any]) -> None:
    with pytest.raises(regard.RegardError, match="Fix"):
        regard.estimate(nn.MultiheadAttention(8, 2), **how)
