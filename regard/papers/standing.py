"""Where each row stands: computed from claims in code and from measured evidence, never typed.

- `reading`: a survey or a study; nothing in it could run.
- `planned`: no code claims it.
- `built`: code that imports claims it. That is all it says: the conformance suite of the code's
  place tests the code, and this state does not look at its result.
- `shown`: and its check held, measured on this very version of the check and of the method.
- `matched`: and what was measured equals an independent implementation or the paper's number.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
from dataclasses import dataclass
from doctest import DocTestParser
from pathlib import Path

from regard.core.method import Claim, claims_of
from regard.papers.catalogue import Row, row, rows
from regard.papers.checks import checks
from regard.papers.evidence_files import FOLDER, Evidence, load
from regard.papers.source import hash_of_function, hash_of_modules

STATES = ("planned", "built", "shown", "matched", "reading")
# Every folder whose code may claim a row: the seven places, and the ground they stand on.
PLACES = (
    *("core", "run", "layers", "memories", "policies", "probes", "circuits"),
    *("analysis", "controls", "schemes", "objectives", "tasks", "conversions", "bench"),
)


@dataclass(frozen=True)
class Standing:
    """The state of one row, with what it was computed from.

    `evidence` is None, or what was measured; `verdict` is `none`, `held`, `failed`, or `stale`
    with the reason in `why`.
    """

    row: Row
    state: str
    claims: tuple[Claim, ...]
    evidence: Evidence | None
    verdict: str
    why: str


@functools.cache
def discover() -> dict[str, str]:
    """Import every module that may claim a row; give those that could not be, with the reason."""
    problems: dict[str, str] = {}
    for place in PLACES:
        name = f"regard.{place}"
        # A place that is not built yet is no problem.
        if importlib.util.find_spec(name) is not None:
            _walk(name, problems)
    _walk("regard.papers.ground", problems)
    return problems


def _walk(name: str, problems: dict[str, str]) -> None:
    try:
        module = importlib.import_module(name)
    except Exception as broken:  # one broken or optional module must not hide the other rows
        problems[name] = f"{type(broken).__name__}: {broken}".splitlines()[0]
        return
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not found.name.startswith("_"):
            _walk(f"{name}.{found.name}", problems)


def standing(key: str, folder: Path = FOLDER) -> Standing:
    """Compute where one row stands."""
    discover()
    one, claimed, evidence = row(key), claims_of(key), load(key, folder)
    verdict, why = _judge(key, claimed, evidence)
    state = "built" if claimed else "planned"
    if one.reading:
        state = "reading"
    elif claimed and verdict == "held":
        state = "matched" if evidence is not None and evidence.matches else "shown"
    return Standing(one, state, claimed, evidence, verdict, why)


def standings(folder: Path = FOLDER) -> list[Standing]:
    """Compute where every row stands, in the order of the catalogue."""
    return [standing(row.key, folder) for row in rows()]


def counts(found: list[Standing]) -> dict[str, dict[str, int]]:
    """Count rows by kind and state."""
    table: dict[str, dict[str, int]] = {}
    for one in found:
        line = table.setdefault(one.row.kind, dict.fromkeys(STATES, 0))
        line[one.state] += 1
    return dict(sorted(table.items()))


def hashes(key: str) -> tuple[str, str]:
    """Give the hash of the row's check as it is now, and that of the modules that claim it."""
    discover()
    made = checks().get(key)
    return (
        hash_of_function(made.function) if made else "",
        hash_of_modules([claim.module for claim in claims_of(key)]),
    )


def _judge(key: str, claimed: tuple[Claim, ...], evidence: Evidence | None) -> tuple[str, str]:
    if evidence is None:
        return "none", ""
    check_hash, method_hash = hashes(key)
    if not check_hash:
        return "stale", "its check is gone"
    if evidence.check_hash != check_hash:
        return "stale", "its check has changed since"
    if not claimed:
        return "stale", "no code claims the row any more"
    if evidence.method_hash != method_hash:
        return "stale", "the method's code has changed since"
    return ("held", "") if evidence.held else ("failed", "the claim did not hold")


def example(claim: Claim) -> str:
    """Show how to call a claimed object: as it says, its docstring's first example, or signature.

    Imports that the docstring takes from its module are written out, so that the text runs.
    """
    if claim.call:
        return claim.call
    examples = DocTestParser().get_examples(inspect.getdoc(claim.obj) or "")
    outermost = claim.name.partition(".")[0]
    lines = [] if "<" in claim.name else [f"from {claim.module} import {outermost}"]
    if examples:
        text = "".join(one.source for one in examples).rstrip()
        if "torch." in text and "import torch" not in text:
            lines.insert(0, "import torch")
        return "\n".join([*(line for line in lines if line not in text), text])
    try:
        signature = str(inspect.signature(claim.obj))
    except (TypeError, ValueError):
        signature = "(...)"
    return "\n".join([*lines, f"{claim.name}{signature}"])


def where(claim: Claim) -> str:
    """Say where a claimed object stands, as `regard/layers/moh.py:12`."""
    path = f"{claim.module.replace('.', '/')}.py"
    try:
        source = inspect.getsourcefile(claim.obj)
        if source is not None and source.endswith("__init__.py"):
            path = f"{claim.module.replace('.', '/')}/__init__.py"
        return f"{path}:{inspect.getsourcelines(claim.obj)[1]}"
    except (OSError, TypeError):
        return path
