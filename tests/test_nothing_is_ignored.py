"""No keyword is taken and left out: over every function, and everything found by registration."""

import ast
import dataclasses
import inspect
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import regard
from regard.conformance.cases import cases_of
from regard.conformance.settings import SETTINGS
from regard.controls.registry import known as controls
from regard.core.errors import RegardError
from regard.layers import registry as layers
from regard.layers.base import Layer
from regard.policies.registry import known as policies
from regard.probes.registry import known as probes
from regard.tasks import registry as tasks

ROOT = Path(regard.__file__).parent
# Parameters that a function must take and does not read, and why.
UNREAD = {
    "conformance/refusals.py": "stand for tensors that a law hands in",
    "memories/tiers.py:least_recent": "one of several ways to choose, all called alike",
    "run/compile.py": "what an operator is told to know shapes; its kernel reads the rest",
    "papers/": "texts and scores of an example",
}


def functions(path):
    """Functions of a module, and the constructors of its classes: what a caller hands settings."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "make"):
                    yield f"{node.name}.{inner.name}", inner


def says(statement):
    """Whether a statement is a docstring or an ellipsis."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def unread(function):
    """Parameters that the body of a function does not read."""
    if all(isinstance(x, ast.Pass | ast.Raise) or says(x) for x in function.body):
        return set()
    taken = function.args
    names = {x.arg for x in taken.posonlyargs + taken.args + taken.kwonlyargs}
    names |= {x.arg for x in (taken.vararg, taken.kwarg) if x is not None}
    read = {
        x.id for part in function.body for x in ast.walk(part)
        if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)
    }  # fmt: skip
    return {x for x in names - read - {"self", "cls"} if not x.startswith("_")}


def test_every_parameter_of_every_function_is_read():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for label, function in functions(path):
            if not any(f"{name}:{label}".startswith(known) for known in UNREAD):
                found += [f"{name}:{label}({x})" for x in unread(function)]
    assert not found


REGISTERED = {
    **{f"policy {n}": k for n, k in policies().items()},
    **{f"control {n}": k for n, k in controls().items()},
    **{f"task {n}": tasks.get(n) for n in tasks.names()},
}
OURS = {n: k for n, k in REGISTERED.items() if k.__module__.startswith("regard.")}


@pytest.fixture(scope="module")
def attributes():
    """Attributes that are read, by folder of the package."""
    found = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found[path.relative_to(ROOT).parts[0]].add(node.attr)
    return found


@pytest.mark.parametrize("name", OURS)
def test_every_setting_of_a_value_is_read(name, attributes):
    """A setting of a policy, a control or a task is stored: somebody in its place must read it."""
    kind = OURS[name]
    place = kind.__module__.split(".")[1]
    fields = {f.name for f in dataclasses.fields(kind) if f.init}
    assert fields - attributes[place] == set()


MADE = {
    **{f"layer {n}": lambda n=n, **x: regard.layer(n, **layers.get(n).tiny, causal=True, **x)
       for n in layers.names() if layers.get(n).__module__.startswith("regard.")},
    **{n: lambda n=n, **x: regard.policies.policy(n.partition(" ")[2], **x)
       for n in OURS if n.startswith("policy")},
    **{n: lambda n=n, **x: regard.controls.control(n.partition(" ")[2], **x)
       for n in OURS if n.startswith("control")},
    **{n: lambda n=n, **x: tasks.task(n.partition(" ")[2], **x)
       for n in OURS if n.startswith("task")},
    **{f"probe {n}": lambda n=n, **x: probes()[n](**x) for n in probes()},
    "model of names": lambda **x: regard.model(["mha"], dim=8, heads=2, vocab=5, **x),
    "model of layers": lambda **x: regard.model(
        [regard.layer("mha", 8, 2, causal=True)], dim=8, vocab=5, **x),
    "see": lambda **x: regard.see(**x),
    "shrink": lambda **x: regard.shrink(torch.nn.Linear(1, 1), "h2o", **x),
    "steer": lambda **x: regard.steer(torch.nn.Linear(1, 1), "emphasis", **x),
    "swap": lambda **x: regard.swap(torch.nn.Linear(1, 1), "gqa", **x),
    "spread": lambda **x: regard.spread(torch.nn.Linear(1, 1), None, **x),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_setting_that_nobody_knows_is_refused(name):
    with pytest.raises((RegardError, TypeError)):
        MADE[name](feedforward_of_another=None)


# Settings that one small call cannot show, and where they act.
LATER = {
    "window": "averages over so many batches", "keep": "a running mean, or what decoding drops",
    "least": "the length of a last window, in longer texts", "depth": "of `layers`, which is 1",
    "layers": "with `depth`, which is 0", "offsets": "a list for each of several layers",
    "dilation": "refused where the tiny text is too short", "rotation": "a table of its own",
    "grid": "of the tiny text, which has one", "tokens": "the length of the text",
    "longest": "the length of a table that is not used up",
}  # fmt: skip
USUAL = {key for values in SETTINGS.values() for key in values} | {"dim", "causal", "context_dim"}


def own_settings():
    """Settings of layers that are not settings of all attention: (layer, setting, default)."""
    for name in layers.names():
        kind = layers.get(name)
        for base in kind.__mro__:
            for made in ("__init__", "make"):
                if made in vars(base) and issubclass(base, Layer):
                    for x in list(inspect.signature(vars(base)[made]).parameters.values())[1:]:
                        if "VAR" not in x.kind.name and x.name not in USUAL | set(LATER):
                            yield pytest.param(name, x.name, x.default, id=f"{name}-{x.name}")


def others(usual):
    """Other values than the usual one, of its kind."""
    if isinstance(usual, bool):
        return [not usual]
    if isinstance(usual, int):
        return [usual + 1, 2 * usual, max(usual // 2, 1), 1, 3]
    if isinstance(usual, float):
        return [usual + 0.3, usual / 2 or 0.1]
    if isinstance(usual, str):
        return ["concat", "dot", "sum", "mean"]
    return [4, 2, 1, 0.5]


@pytest.mark.parametrize(("name", "setting", "usual"), list(own_settings()))
def test_a_setting_of_a_layer_changes_it_or_is_refused(name, setting, usual):
    said = []
    for case in cases_of(name):
        base = case.kind.tiny.get(setting, None if usual is inspect.Parameter.empty else usual)
        for value in others(base):
            try:
                torch.manual_seed(1)
                inputs = case.inputs()
                plain, changed = case.make().train(), case.make(**{setting: value}).train()
                torch.manual_seed(2)
                was = plain(**inputs)
                torch.manual_seed(2)
                is_now = changed(**inputs)
            except (RegardError, TypeError, RuntimeError, AttributeError) as refused:
                said.append(type(refused).__name__)
                continue
            shapes = [{k: x.shape for k, x in y.state_dict().items()} for y in (plain, changed)]
            if shapes[0] != shapes[1] or not torch.equal(was, is_now):
                return
            said.append(f"{base} and {value} are the same")
    assert said
    assert not any("same" in x for x in said), said
