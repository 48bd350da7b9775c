"""`torch.compile(fullgraph=True)` over a module that attends gives what the module gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.core.rule import Rule
from regard.core.score import Dot, RelativeBias, SoftCap
from regard.core.support import Causal, Window
from regard.core.weigh import Sigmoid, Softmax


class Attention(nn.Module):
    def __init__(self, rule: Rule | None) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.project(x).view(b, n, 4, 12).transpose(1, 2).split(4, -1)
        return regard.attend(q, k, v, self.rule)


class Learned(Attention):
    """The rule holds a parameter of the module."""

    def __init__(self) -> None:
        super().__init__(None)
        self.table = nn.Parameter(torch.randn(4, 31))
        self.rule = Rule(Causal() & Window(30), Dot() + RelativeBias(self.table))


MODULES = {
    "no rule": lambda: Attention(None),
    "causal": lambda: Attention(Rule(Causal())),
    "window": lambda: Attention(Rule(Causal() & Window(100))),
    "capped": lambda: Attention(Rule(Causal() & Window(20), Dot() >> SoftCap(5.0))),
    "sigmoid": lambda: Attention(Rule(weigh=Sigmoid())),
    "sink": lambda: Attention(Rule(weigh=Softmax(sink=nn.Parameter(torch.randn(4))))),
    "learned bias": Learned,
}


@pytest.mark.parametrize("name", MODULES)
def test_compiled_equals_eager(name, seed):
    torch._dynamo.reset()
    module = MODULES[name]().double()
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(2, 300, 16, dtype=torch.float64)
    wants = list(module.parameters())
    torch.testing.assert_close(compiled(x), module(x))
    got = torch.autograd.grad(compiled(x).square().sum(), wants)
    want = torch.autograd.grad(module(x).square().sum(), wants)
    torch.testing.assert_close(got, want)
