"""`torch.compile(fullgraph=True)` over a module that attends gives what the module gives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.conformance.cases import cases_of
from regard.core.errors import RuleError
from regard.core.rule import Rule
from regard.core.score import Dot, RelativeBias, ScoreStep, SoftCap
from regard.core.support import Causal, Padding, Where, Window
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


# Graphs that travel

EXPORTED = {
    "window": lambda: Rule(Causal() & Window(3)),
    "other window": lambda: Rule(Causal() & Window(7)),
    "padding": lambda: Rule(Padding(torch.arange(24).view(2, 12) % 5 > 0)),
    "bias": lambda: Rule(Causal(), Dot() + RelativeBias(torch.linspace(-1, 1, 5)[None])),
    "sigmoid": lambda: Rule(Causal(), weigh=Sigmoid(-1.0)),
    "sink": lambda: Rule(Causal(), weigh=Softmax(sink=torch.linspace(-1, 1, 4))),
}

LOAD = """
import sys, torch
import regard
# Rules made before the graph is loaded take the numbers that its own had elsewhere.
others = [regard.Rule(regard.Causal() & regard.Window(2)) for _ in range(200)]
import regard.run.compile
x = torch.load(sys.argv[2])
out = torch.export.load(sys.argv[1]).module()(x)
torch.save(out, sys.argv[3])
"""


def _elsewhere(folder, program, x):
    """Run an exported program in another process; its output, or what it said."""
    torch.export.save(program, folder / "graph.pt2")
    torch.save(x, folder / "x.pt")
    files = [str(folder / name) for name in ("graph.pt2", "x.pt", "out.pt")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *files], capture_output=True, text=True, check=False
    )
    return torch.load(files[2]) if done.returncode == 0 else done.stderr


def _exported(rule):
    module = Attention(rule)
    x = torch.randn(2, 12, 16)
    return torch.export.export(module, (x,)), x, module(x)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_graph_names_its_rule(name, seed, tmp_path):
    """Another rule made later, under the same number or not, is never run in its place."""
    program, x, want = _exported(EXPORTED[name]())
    torch.testing.assert_close(program.module()(x), want)
    if name in ("window", "bias"):
        found = _elsewhere(tmp_path, program, x)
        assert isinstance(found, torch.Tensor), found
        torch.testing.assert_close(found, want)


def _odd(b, h, i, j):
    return (i + j) % 2 == 0


def test_a_graph_whose_rule_holds_a_function_stays_at_home(seed, tmp_path):
    program, x, want = _exported(Rule(Where(_odd)))
    torch.testing.assert_close(program.module()(x), want)
    assert "whose rule holds a function" in str(_elsewhere(tmp_path, program, x))


def test_what_a_function_learns_is_refused_in_compiled_code(seed):
    torch._dynamo.reset()
    weight = torch.ones(1, requires_grad=True)
    module = Attention(Rule(score=Dot() >> ScoreStep(lambda s, b, h, i, j: s * weight)))
    x = torch.randn(1, 5, 16)
    with pytest.raises(RuleError, match="reaches tensors which are being learned"):
        torch.compile(module, backend="eager", fullgraph=True)(x)
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), module(x))


FRESH = """
import torch
import regard

def attended(q, k, v):
    return regard.attend(q, k, v)

q, k, v = torch.randn(3, 1, 2, 8, 4)
found = torch.compile(attended, fullgraph=True, backend="eager")(q, k, v)
torch.testing.assert_close(found, attended(q, k, v))
"""


def test_what_a_trace_imports_is_made_outside_of_the_graph():
    """The first call of a process loads the library while it is traced: its plain rule holds."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Layers whose rule stays, of several kinds: the first call of all is the compiled one.
STAYS = ("mha", "gqa", "moh", "mla", "talking_heads", "natten", "softmax_plus_one")


@pytest.mark.parametrize("name", STAYS)
def test_a_layer_compiles_whole_before_it_was_ever_called(name, seed):
    torch._dynamo.reset()
    case = cases_of(name)[0]
    layer, inputs = case.make(), case.inputs()
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(found, layer(**inputs))


class Placed(Attention):
    """Its tokens are not at 0, 1, 2, ..."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)[:, None].split(16, -1)
        at = 2 * torch.arange(x.shape[1])
        return regard.attend(q, k, v, self.rule, q_positions=at, k_positions=at)


def test_an_export_of_tokens_with_positions(seed):
    module, x = Placed(Rule(Causal() & Window(3))), torch.randn(2, 6, 16)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


def test_a_part_of_a_rule_leaves_compiled_code(seed):
    """A rule cannot be made inside a graph: the call is run behind a break of it."""

    def attended(x):
        return 2 * regard.attend(x, x, x, Causal() & Window(3))

    torch._dynamo.reset()
    x = torch.randn(1, 2, 8, 4)
    torch.testing.assert_close(torch.compile(attended, backend="eager")(x), attended(x))
