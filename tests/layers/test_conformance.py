"""The laws themselves: none passes for nothing, none is left out without a word."""

import ast
from pathlib import Path

import pytest

from regard.conformance import cases
from regard.conformance.refusals import REFUSALS
from regard.core.errors import CapabilityError
from regard.layers import Attention, Layer, Recurrent, registry
from regard.layers.inputs import Capabilities

LAWS = sorted(Path(cases.__file__).parent.glob("test_*.py"))


def laws():
    for path in LAWS:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.stem}.{node.name}", node


@pytest.mark.parametrize(("name", "law"), [pytest.param(*x, id=x[0]) for x in laws()])
def test_no_law_returns_early_or_skips(name, law):
    """A law that does not concern a case is left out by `needs`, where it is seen."""
    inner = {n for f in ast.walk(law) if isinstance(f, ast.FunctionDef) and f is not law
             for n in ast.walk(f)}  # fmt: skip
    returns = [n for n in ast.walk(law) if isinstance(n, ast.Return) and n not in inner]
    assert not returns
    assert "pytest.skip" not in ast.unparse(law)


def test_needs_leave_out_what_is_not_promised():
    @cases.needs("decode", modes=("causal",))
    def law(case): ...

    wanted = cases.needed(law)
    found = [c for name in registry.names() for c in cases.cases_of(name) if wanted.case(c)]
    assert found
    assert all(c.kind.can.decode and c.mode == "causal" for c in found)
    assert cases.needed(lambda case: None).case(found[0])


def test_every_capability_that_can_be_asked_for_has_a_refusal():
    promises = {"constant_memory", "linear", "any_length", "multihead_weights", "exact_gradients"}
    assert set(REFUSALS) == set(Capabilities.__dataclass_fields__) - promises


@pytest.mark.parametrize("base", [Attention, Recurrent])
def test_a_layer_in_the_style_of_another_base_is_told_which(base):
    """Steps of `Attention` on a bare `Layer` would never be called."""
    steps = {"queries": lambda self, x: x, "keys": lambda self, x: (x, x)}
    if base is Recurrent:
        steps["features"] = lambda self, x: x
    kind = type("Mine", (Layer,), steps)
    with pytest.raises(CapabilityError, match=f"(?s)compute.*{base.__name__}"):
        kind(32)
    assert type("Mine", (base,), {})(32, heads=4)


def test_a_bare_layer_is_told_to_compute():
    with pytest.raises(CapabilityError, match="write compute"):
        type("Mine", (Layer,), {})(32)
