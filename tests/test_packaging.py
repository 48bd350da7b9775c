"""What a newcomer and a packager rely on: names, versions, commands and links that hold."""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import regard

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "regard"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# The links of docs/ are checked by the strict build of the site.
DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def pins() -> dict[str, Version]:
    """Versions in constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for one in wanted:
        (specifier,) = one.specifier
        assert specifier.operator == "==", f"{one} is no pin"
        found[canonicalize_name(one.name)] = Version(specifier.version)
    return found


def wanted() -> Iterator[tuple[str, Requirement]]:
    """Where a requirement stands, and the requirement; references to other extras left out."""
    for extra, requirements in {"": PROJECT["dependencies"], **EXTRAS}.items():
        for text in requirements:
            requirement = Requirement(text)
            if requirement.name != "regard":
                yield extra, requirement


def test_only_torch_and_numpy_are_required() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"torch", "numpy"}


@pytest.mark.parametrize(
    ("extra", "requirement"), list(wanted()), ids=lambda x: str(x).split(";")[0]
)
def test_ci_pins_a_version_that_is_supported(extra: str, requirement: Requirement) -> None:
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned), f"[{extra}] {requirement} excludes {pinned}"


def test_nothing_is_pinned_that_is_not_wanted() -> None:
    # mkdocstrings-python is what the [python] extra of mkdocstrings brings.
    names = {canonicalize_name(requirement.name) for _, requirement in wanted()}
    assert set(pins()) - names == {"mkdocstrings-python"}


def test_hubs_have_an_upper_bound() -> None:
    for _, requirement in wanted():
        if requirement.name in ("transformers", "diffusers", "flash-linear-attention"):
            operators = {specifier.operator for specifier in requirement.specifier}
            assert operators == {">=", "<"}, f"{requirement}: drift breaks hooks without a word"


def bounded() -> list[tuple[str, str]]:
    """Requirements with an upper bound, and the bound."""
    found = {(r.name, s.version) for _, r in wanted() for s in r.specifier if s.operator == "<"}
    return sorted(found)


@pytest.mark.parametrize(("name", "bound"), bounded())
def test_an_upper_bound_is_tested(name: str, bound: str) -> None:
    """CI runs with the last series below each bound: what a bound admits is what was tried."""
    top = Version(bound).release
    pinned = pins()[canonicalize_name(name)].release[: len(top)]
    assert (*pinned[:-1], pinned[-1] + 1) == top, f"{name} is tested with {pinned}, not below {top}"


def test_what_is_always_installed_has_an_upper_bound() -> None:
    assert {"torch", "numpy", "triton"} <= {name for name, _ in bounded()}


def locked() -> dict[str, tuple[Version, list[str]]]:
    """Versions and hashes in requirements-ci.lock."""
    text = (REPOSITORY / "requirements-ci.lock").read_text()
    lines = [x for x in text.replace("\\\n", " ").splitlines() if x and not x.startswith("#")]
    found = {}
    for line in lines:
        pin, *hashes = line.split()
        name, _, version = pin.partition("==")
        found[canonicalize_name(name)] = (Version(version), hashes)
    return found


# What `make` installs for the tests: the extras that are locked.
LOCKED = ("", "dev", "see", "bench", "hf", "diffusers", "docs")


def test_the_lock_is_in_step_with_the_constraints() -> None:
    """Everything that CI installs is locked, at the version of constraints.txt, by SHA-256."""
    found, wanted_here = locked(), {}
    for extra, requirement in wanted():
        if extra in LOCKED and (requirement.marker is None or requirement.marker.evaluate()):
            wanted_here[canonicalize_name(requirement.name)] = requirement
    for name in wanted_here:
        assert name in found, f"{name} is not locked: python scripts/lock.py"
        assert found[name][0].public == pins()[name].public, f"{name}: python scripts/lock.py"
    for name, (_, hashes) in found.items():
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", x) for x in hashes), name
        if name in pins():
            assert found[name][0].public == pins()[name].public, f"{name}: python scripts/lock.py"


def test_the_lock_names_no_place() -> None:
    text = (REPOSITORY / "requirements-ci.lock").read_text()
    assert "//" not in text
    assert not re.search(r"(?m)^\s*-(?!-hash)", text)


def test_extras_refer_to_extras_that_exist() -> None:
    for requirements in EXTRAS.values():
        for requirement in map(Requirement, requirements):
            if requirement.name == "regard":
                assert requirement.extras <= set(EXTRAS)


def needs() -> Iterator[tuple[str, str]]:
    """File with line, and extra, of every `need(module, extra, why)` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need"
            if called and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", str(node.args[1].value)


def test_the_sentence_about_a_missing_extra_names_an_extra() -> None:
    unknown = [(where, extra) for where, extra in needs() if extra not in EXTRAS]
    assert not unknown


def test_the_version_is_in_the_changelog() -> None:
    version = Version(regard.__version__)
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    heading = "Unreleased" if version.is_devrelease else version.base_version
    assert re.search(rf"^## \[?{re.escape(heading)}\b", text, re.MULTILINE)


def test_the_citation_is_of_this_version() -> None:
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    said = dict(re.findall(r"^(version|license|title): \"?([^\"\n]+)", text, re.MULTILINE))
    assert said["version"] == regard.__version__
    assert said["license"] == PROJECT["license"]
    assert PROJECT["description"].lower() in said["title"].lower()


def test_the_package_is_typed_and_licensed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()[:100]
    assert PROJECT["license"] == "Apache-2.0"


def test_ci_runs_what_newcomers_run() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    for command in ("demo", "test"):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
        assert f"make {command}" in readme


def test_the_readme_is_short() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert sum(line.startswith("![") for line in lines) == 3
    assert sum(line.startswith(("| ---", "|---")) for line in lines) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"
