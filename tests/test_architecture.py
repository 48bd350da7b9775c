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
    {"circuits", "analysis"},
    {"views", "verbs", "serving"},
    {"bench", "papers"},
    {"studio", "cli", "tour", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Doors between rooms of one floor, each with its reason.
SIDEWAYS = {
    ("layers", "memories"): "a layer decodes through its memory",
    ("verbs", "views"): "a verb shows what it found",
    ("serving", "views"): "a served request that was surveyed leaves a run file",
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
    *("pandas", "pyarrow", "rich", "typer", "triton", "fla", "sklearn", "ray", "vllm"),
}

MODULES = sorted(ROOT.rglob("*.py"))


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


def test_imports_go_down_only() -> None:
    wrong = [at for path in MODULES for at in _imports_that_go_up(path)]
    assert not wrong, "\n".join(wrong)


def _imports_that_go_up(path: Path) -> Iterator[str]:
    source = room(path)
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        if top != "regard" or rest == "__version__":
            continue
        if not rest and FLOOR_OF.get(source) == len(FLOORS) - 1:
            continue  # the top floor may use the face, as users do
        target, at = rest.partition(".")[0], f"{path.relative_to(ROOT)}:{line}"
        if target not in FLOOR_OF:
            yield f"{at} imports {name}: name the module it lives in, not the face"
        elif not may_import(source, target):
            yield f"{at}: {source} may not import {target}"


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


def test_core_imports_torch_numpy_and_the_standard_library_only() -> None:
    # That what may come late (LATE_IN_CORE) is not at the top is held by the test below.
    heavy = [
        f"{path.name}:{line} imports {name}"
        for path in MODULES
        if room(path) == "core"
        for line, name in imports(path)
        if (top := name.partition(".")[0]) not in LIGHT
        and top not in sys.stdlib_module_names
        and (path.name, top) not in LATE_IN_CORE
    ]
    assert not heavy, "\n".join(heavy)


def _may_import_optional_packages(path: Path) -> bool:
    relative = path.relative_to(ROOT).parts
    if relative[:2] == ("run", "triton") or room(path) in ("cli", "studio"):
        return True  # imported only when asked for by name
    # Subclasses of transformers' own, imported where one of its models or caches is at hand.
    held = {
        ("conversions", "cache.py"),
        ("models", "cache.py"),
        ("models", "attention_interface.py"),
    }
    # Subclasses of vLLM's, which vLLM imports by name.
    held |= {("serving", "vllm", x) for x in ("backend.py", "cpu_backend.py")}
    return relative in held


def test_optional_packages_are_not_imported_at_the_top() -> None:
    early = [
        f"{path.relative_to(ROOT)}:{line} imports {name} at the top: use need(...) where it is used"
        for path in MODULES
        if not _may_import_optional_packages(path)
        for line, name in imports(path, top_level_only=True)
        if name.partition(".")[0] in OPTIONAL
    ]
    assert not early, "\n".join(early)


def test_a_file_is_short_enough_to_read_in_one_sitting() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lines.items() if n > LONGEST_FILE]
    assert not long, "split by idea: " + "; ".join(long)


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
