"""Policies are of five kinds, and say what these ask for: over every policy that is registered."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import regard
from regard import probes
from regard.core.errors import RuleError
from regard.models.stage import Stage
from regard.policies import Policy, kinds, known, policy, register
from regard.policies.kinds import KINDS, Calibrated, Evict, EvictAtSteps, Select
from regard.policies.timing import EachStep
from tests.architectures import sharp_llama

ROOT = Path(regard.__file__).parent
REGISTERED = sorted({kind.name for kind in known().values()})
PROTOCOLS = (Stage, Policy, *KINDS, Calibrated, probes.Probe)
MOST = {"kind": 4, "class": 8}


def methods(kind: type) -> list[str]:
    """Public methods that a class defines itself."""
    found = {name: getattr(x, "__func__", x) for name, x in vars(kind).items()}
    return [name for name, x in found.items() if name[0] != "_" and inspect.isfunction(x)]


def offered(kind: type) -> list[str]:
    """Public methods that a class has of its own or of ours, beyond those of the protocols.

    A protocol is what a place asks of all in it, and is read once: Stage, Policy with its kinds,
    Calibrated and Probe. What a class offers more is what its reader must learn anew.
    """
    asked = {name for one in PROTOCOLS for name in methods(one)}
    ours = [x for x in kind.__mro__ if x.__module__.startswith("regard.")]
    return sorted({name for one in ours for name in methods(one)} - asked)


def below(kind: type) -> set[type]:
    """All classes of the library that derive from one, itself included."""
    return {kind} | {x for one in kind.__subclasses__() for x in below(one)}


@pytest.mark.parametrize("name", REGISTERED)
def test_a_policy_is_of_one_kind_at_least(name: str) -> None:
    kind = known()[name]
    assert issubclass(kind, KINDS)
    assert not getattr(kind, "__abstractmethods__", ())
    assert isinstance(policy(name), KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_a_kind_asks_for_little(kind: type) -> None:
    own = [name for name in methods(kind) if name != "can"]
    assert 1 <= len(own) <= MOST["kind"], own
    assert getattr(kind, "__abstractmethods__", ()), "a kind says what must be there"


def test_no_stage_and_no_policy_has_many_methods() -> None:
    known(), probes.known()
    found = {x for one in PROTOCOLS for x in below(one)}
    ours = [kind for kind in found if kind.__module__.startswith("regard.")]
    assert len(ours) > 100
    for count in (methods, offered):
        assert {k.__name__: count(k) for k in ours if len(count(k)) > MOST["class"]} == {}


def test_policies_register_only_in_policies() -> None:
    assert {kind.__module__.rpartition(".")[0] for kind in known().values()} == {"regard.policies"}
    for path in ROOT.rglob("*.py"):
        names = {
            f"{node.module}.{x.name}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) for x in node.names
        }  # fmt: skip
        inside = path.is_relative_to(ROOT / "policies")
        assert inside or "regard.policies.registry.register" not in names, path


def test_a_hook_of_another_kind_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(RuleError, match="derives from Evict"):
        type("Half", (Select,), {"slots": lambda self, step: None})
    with pytest.raises(RuleError, match="derives from Store"):
        type("Half", (Evict,), {"memory": lambda self, site, before: None})


def test_a_policy_that_lacks_what_its_kind_asks_for_is_refused() -> None:
    lacking = type("Lacking", (Evict,), {})
    with pytest.raises(RuleError, match="a policy without score"):
        register("lacking")(lacking)
    with pytest.raises(TypeError, match="abstract"):
        lacking()
    assert "lacking" not in known()


@torch.no_grad()
def test_a_policy_is_its_score() -> None:
    """A dozen lines are a policy, after prompts and, wrapped, at every step."""

    class Middle(Evict):
        """Keep the keys that are nearest to the middle of what was seen."""

        name = "middle"

        def score(self, step: Any) -> Tensor:
            """Score by the distance from the middle."""
            return -(step.positions - step.seen / 2).abs()

    model = sharp_llama(2)
    ids = torch.randint(5, 60, (1, 60), generator=torch.Generator().manual_seed(0))
    for made, want in ((Middle(), 20 + 5), (EachStep(inner=Middle(recent=1)), 20)):
        with regard.shrink(model, made, keep=20, check=False) as shrunk:
            cache = model(ids[:, :55]).past_key_values
            at = cache.layers[0].memory.read().positions
            assert set(range(19, 36)) <= set(at[0, 0].tolist())
            for t in range(55, 60):
                model(ids[:, t : t + 1], past_key_values=cache)
            assert shrunk.report().layers[0].kept[0] <= want
            assert shrunk.report().layers[0].kept[0] >= want - 1


@pytest.mark.parametrize("name", REGISTERED)
def test_what_evicts_at_steps_can_do_without(name: str) -> None:
    made: Any = policy(name)
    if not isinstance(made, EachStep):
        pytest.skip("it is no timing")
    assert isinstance(made.inner, Evict)
    assert not isinstance(made.inner, EvictAtSteps)
    assert made.name == made.inner.name == name
    assert kinds.Evict in type(made).__mro__
