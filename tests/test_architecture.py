"""The shape of the house: imports go down only, files stay short, the face stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import regard

ROOT = Path(regard.__file__).parent
LONGEST_FILE = 450

# Floors of the house, from the ground up. A folder may import from lower floors and from itself.
FLOORS = (
    {"core"},
    {"run"},
    {"layers", "memories"},
    {"models", "demo", "conformance"},
    {"probes", "policies", "controls", "schemes", "conversions", "objectives", "tasks"},
    {"views", "verbs"},
    {"bench", "papers"},
    {"studio", "cli", "tour", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Doors between rooms of one floor, each with its reason.
SIDEWAYS = {
    ("layers", "memories"): "a layer decodes through its memory",
    ("verbs", "views"): "a verb shows what it found",
    ("cli", "studio"): "the shell starts the workbench",
    ("cli", "tour"): "the shell offers the tour",
    ("__main__", "cli"): "`python -m regard` is the shell",
    ("papers", "bench"): "a check measures with what benchmarks measure with",
}
LIGHT = {"torch", "numpy", "regard"}
# What core may load inside a function, and where: a rule draws itself.
LATE_IN_CORE = {("draw.py", "matplotlib")}
OPTIONAL = {
    *("transformers", "diffusers", "accelerate", "tokenizers", "safetensors", "matplotlib"),
    *("pandas", "pyarrow", "rich", "typer", "triton", "fla", "sklearn", "ray"),
}

MODULES = sorted(ROOT.rglob("*.py"))
MODULE_IDS = [str(path.relative_to(ROOT)) for path in MODULES]
every_module = pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)


def room(path: Path) -> str:
    """Folder or top-level module that a file belongs to ('' for the face)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = ["regard", *path.relative_to(ROOT).parent.parts]
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from regard import x` and `from regard.core import x` may name modules.
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}" if origin else alias.name


def may_import(source: str, target: str) -> bool:
    """Whether a file of room `source` may import from room `target`."""
    if source in ("", target):
        return True
    return FLOOR_OF[target] < FLOOR_OF[source] or (source, target) in SIDEWAYS


def test_every_room_has_a_floor() -> None:
    unknown = {room(path) for path in MODULES} - set(FLOOR_OF) - {""}
    assert not unknown, f"put {sorted(unknown)} on a floor of FLOORS, or move it"


@every_module
def test_imports_go_down_only(path: Path) -> None:
    source = room(path)
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        if top != "regard" or rest == "__version__":
            continue
        if not rest and FLOOR_OF.get(source) == len(FLOORS) - 1:
            continue  # the top floor may use the face, as users do
        target = rest.partition(".")[0]
        assert target in FLOOR_OF, (
            f"{path.name}:{line} imports {name}: name the module it lives in, not the face"
        )
        assert may_import(source, target), f"{path.name}:{line}: {source} may not import {target}"


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("run", "core", True),
        ("core", "run", False),
        ("core", "core", True),
        ("layers", "memories", True),
        ("memories", "layers", False),
        ("probes", "policies", False),
        ("models", "probes", False),
        ("cli", "core", True),
    ],
)
def test_the_rule_for_imports_can_say_no(source: str, target: str, allowed: bool) -> None:
    assert may_import(source, target) is allowed


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) == "core"], ids=lambda p: p.stem)
def test_core_imports_torch_numpy_and_the_standard_library_only(path: Path) -> None:
    for line, name in imports(path):
        top = name.partition(".")[0]
        if (path.name, top) in LATE_IN_CORE:
            continue  # the test below holds that it is not at the top
        assert top in LIGHT or top in sys.stdlib_module_names, f"{path.name}:{line} imports {name}"


@every_module
def test_optional_packages_are_not_imported_at_the_top(path: Path) -> None:
    relative = path.relative_to(ROOT).parts
    if relative[:2] == ("run", "triton") or room(path) in ("cli", "studio"):
        return  # imported only when asked for by name
    if relative in (("conversions", "cache.py"), ("models", "cache.py")):
        return  # a subclass of transformers' own, imported where one of its caches is at hand
    for line, name in imports(path, top_level_only=True):
        assert name.partition(".")[0] not in OPTIONAL, (
            f"{path.name}:{line} imports {name} at the top: use need(...) where it is used"
        )


@every_module
def test_a_file_is_short_enough_to_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines: split it by idea"


def test_no_public_name_hides_a_module() -> None:
    rooms = {path.stem for path in ROOT.glob("*.py")} | {
        p.name for p in ROOT.iterdir() if p.is_dir()
    }
    assert not rooms & set(regard.__all__)


def _modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter that ran `code`."""
    report = f"{code}\nimport sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=120
    )
    return set(ran.stdout.split())


def test_importing_regard_loads_nothing_else() -> None:
    assert not _modules_after("import regard") & {*OPTIONAL, "torch", "numpy"}


def test_using_every_public_name_loads_no_optional_package() -> None:
    alone = _modules_after("import torch, numpy")
    loaded = _modules_after("import regard\nfor name in regard.__all__: getattr(regard, name)")
    assert "torch" in loaded
    extra = loaded - alone
    assert not extra & OPTIONAL
    # The compiler costs a second to import; it is loaded when something is compiled.
    assert not extra & {"torch._dynamo", "torch._inductor", "sympy"}


@pytest.mark.parametrize("name", regard.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(regard, name) is not None
    assert name in dir(regard)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    stub = {
        alias.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert stub == regard._MODULE_OF


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = regard.nonsense
