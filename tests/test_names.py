"""Names say one thing each: no two modules or classes of one name that are two ideas."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import regard
from regard.models import Stage
from regard.policies.base import Policy

ROOT = Path(regard.__file__).parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}
MOST_METHODS = 8

# Names that several files share because the idea is one: where, and why. Another file of that name,
# or one fewer, changes the entry.
SAME_CLASS = {
    "Alibi": ("core/score/biases layers/positions", "the layer's part adds the rule's bias"),
    "Cope": ("core/score/contents layers/positions", "the layer's part adds the rule's step"),
    "Distance": ("probes/shape run/reducers", "the probe reads the reducer of that name"),
    "Entropy": ("probes/shape run/reducers", "the probe reads the reducer of that name"),
    "Entry": ("layers/registry tasks/registry", "a line of the room's table"),
    "Induction": ("probes/roles tasks/recall", "the heads, and the task that they solve"),
    "Listing": ("layers/registry tasks/registry", "the room's table"),
    "Paged": ("core/paged_keys memories/paged", "the memory whose keys have that form"),
    "Quantized": ("memories/quantized policies/storing", "the policy stores in that memory"),
}
SAME_MODULE = {
    "__main__": (". cli", "what `python -m` runs"),
    "bands": ("core/support run", "the supports, and their numbers as a kernel takes them"),
    "base": (
        "controls core/score core/support layers memories policies probes tasks",
        "what everything of the room derives from",
    ),
    "cache": ("conversions models", "a cache of transformers that holds memories of ours"),
    "compare": ("cli views", "the command shows the view"),
    "dense": ("core/score core/support", "a rule written out as a table"),
    "executor": ("run run/triton", "the protocol, and the executor made of Triton's kernels"),
    "packed": ("run run/triton", "the executor, and its kernel"),
    "paged": ("memories run", "the memory, and the executor that reads its pages"),
    "registry": ("controls core layers policies probes tasks", "what the room offers, by name"),
    "roles": ("probes views", "the view shows what the probes find"),
    "rotary": ("core models", "rotary positions, and how a model uses them"),
    "survey": ("core run run/triton", "what a survey reports, how, and by which kernels"),
}
# Attributes set by a name that is computed: of a module or a class, never of a tensor.
SET_BY_NAME = {
    "conversions/head_sharing.py": "a child of a module is replaced",
    "models/loading.py": "readers of the gguf package read once while a file is loaded",
    "models/masks.py": "a class gets its operators",
    "serving/vllm/hooks.py": "methods of vLLM's classes are wrapped",
}

Places = dict[str, list[str]]


def places_of_classes(sources: dict[str, ast.Module]) -> Places:
    """Files of each class by its name."""
    found: Places = defaultdict(list)
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path.removesuffix(".py"))
    return found


def places_of_modules(sources: dict[str, ast.Module]) -> Places:
    """Folders of each module by its name; a check is named by its row, whatever else is."""
    found: Places = defaultdict(list)
    for path in map(Path, sources):
        if path.stem != "__init__" and path.parent.as_posix() != "papers/checks":
            found[path.stem].append(path.parent.as_posix())
    return found


def wrong_names(places: Places, same: dict[str, tuple[str, str]]) -> list[str]:
    """Say which names stand in several places without a reason, or have one without need."""
    several = {name: sorted(at) for name, at in places.items() if len(at) > 1}
    told = {name: sorted(at.split()) for name, (at, _) in same.items()}
    return [
        f"{name}: {several.get(name, 'one place')}, told {told.get(name, 'nowhere')}"
        for name in sorted({*several, *told})
        if several.get(name) != told.get(name)
    ]


def test_a_class_has_a_name_of_its_own() -> None:
    wrong = wrong_names(places_of_classes(SOURCES), SAME_CLASS)
    assert not wrong, "rename one, or write the idea that they share:\n" + "\n".join(wrong)


def test_a_module_has_a_name_of_its_own() -> None:
    wrong = wrong_names(places_of_modules(SOURCES), SAME_MODULE)
    assert not wrong, "rename one, or write the idea that they share:\n" + "\n".join(wrong)


def test_the_count_of_names_can_say_no() -> None:
    sources = {f"{room}/kept.py": ast.parse("class Kept: ...") for room in ("a", "b")}
    for places, at in (
        (places_of_classes(sources), "a/kept b/kept"),
        (places_of_modules(sources), "a b"),
    ):
        name = next(iter(places))
        assert wrong_names(places, {})
        assert not wrong_names(places, {name: (at, "one idea")})
        assert wrong_names(places, {name: (f"{at} c", "a place that is gone")})
        assert wrong_names(places, {name: (at, "one idea"), "gone": (at, "nothing has the name")})
    beside = {"policies/quest.py": ast.parse(""), "papers/checks/quest.py": ast.parse("")}
    assert not wrong_names(places_of_modules(beside), {})


def kinds(base: type) -> Iterator[type]:
    """Yield a class of the library and all that derive from it."""
    for child in base.__subclasses__():
        yield from kinds(child)
    if base.__module__.startswith("regard."):
        yield base


def public_methods(kind: type) -> list[str]:
    """Names of the public methods that a class writes itself."""
    methods = (FunctionType, classmethod, staticmethod)
    return [n for n, x in vars(kind).items() if n[0] != "_" and isinstance(x, methods)]


@pytest.mark.parametrize("base", [Stage, Policy])
def test_a_stage_or_a_policy_has_few_public_methods(base: type) -> None:
    for room in ("models", "probes", "policies", "circuits"):
        package = importlib.import_module(f"regard.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"regard.{room}."):
            importlib.import_module(module.name)
    found = {kind: public_methods(kind) for kind in kinds(base)}
    assert len(found) > 40
    large = {kind.__qualname__: m for kind, m in found.items() if len(m) > MOST_METHODS}
    assert not large, f"more than {MOST_METHODS} public methods, split by idea: {large}"


def test_the_count_of_methods_sees_every_kind_of_method() -> None:
    class Many:
        value = 3

        def one(self) -> None: ...
        @classmethod
        def two(cls) -> None: ...
        @staticmethod
        def three() -> None: ...
        @property
        def fact(self) -> int: ...
        def _own(self) -> None: ...

    assert public_methods(Many) == ["one", "two", "three"]


def sets_by_name(tree: ast.AST) -> bool:
    """Whether a file calls `setattr`."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Name) and called.id == "setattr" for called in calls)


def test_attributes_are_set_by_name_where_told_alone() -> None:
    found = {path for path, tree in SOURCES.items() if sets_by_name(tree)}
    assert found == set(SET_BY_NAME)
    assert sets_by_name(ast.parse("def tag(x: Any) -> None:\n    setattr(x, 'step', 3)"))
