"""Where each row stands: computed from claims in code and from measured evidence, never typed.

- `reading`: a survey or a study; nothing in it could run.
- `planned`: no code claims it.
- `built`: code that imports claims it. That is all it says: the conformance suite of the code's
  place tests the code, and this state does not look at its result.
- `partly`: and some sentences that the catalogue asks for held, over five seeds, while others were
  narrowed, left out, or failed.
- `shown`: every sentence is answered in full and every claim held, over five seeds, measured on
  this very version of the check and of all code that it reaches.
- `matched`: shown, and equal to an independent implementation or to the paper's own number.
- `failed`: claims were measured, and no sentence of the catalogue holds here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from doctest import DocTestParser
from pathlib import Path

from regard.core.method import MethodClaim, claims_of
from regard.papers.catalogue import Row, row, rows
from regard.papers.checks import checks, lacking
from regard.papers.closure import closure, hash_of_closure, split
from regard.papers.evidence_files import FOLDER, SEEDS, Evidence, load

STATES = ("planned", "built", "partly", "shown", "matched", "failed", "reading")
# The one reason for staleness that one seed can lift: see `regard.papers.confirming`.
CODE_CHANGED = "code that it reaches has changed since"
# Every folder whose code may claim a row: the seven places, and the ground they stand on.
PLACES = (
    *("core", "run", "layers", "memories", "policies", "probes", "circuits"),
    *("analysis", "controls", "schemes", "serving", "tasks", "conversions", "bench"),
)


@dataclass(frozen=True)
class Standing:
    """The state of one row, with what it was computed from.

    `evidence` is None, or what was measured; `verdict` is `none`, `held`, `partly`, `failed`, or
    a reason not to count it: `stale`, `dirty`, `pinned`, `unanswered`, `few seeds`.
    `why` says more, and what was narrowed, left out, or failed.
    """

    row: Row
    state: str
    claims: tuple[MethodClaim, ...]
    evidence: Evidence | None
    verdict: str
    why: str

    @property
    def fresh(self) -> bool:
        """Whether measuring again on this version of the code could say nothing new."""
        return self.verdict not in ("none", "stale", "dirty")


@functools.cache
def discover() -> dict[str, str]:
    """Import every module that may claim a row; give those that could not be, with the reason."""
    problems: dict[str, str] = {}
    for place in PLACES:
        _walk(f"regard.{place}", problems)
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
    elif claimed and verdict in ("partly", "failed"):
        state = verdict
    elif claimed and verdict == "held":
        assert evidence is not None
        state = "matched" if any(one.independent for one in evidence.claims) else "shown"
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
    """Hash the row's check with its helpers, and all code that the check or its claims reach."""
    discover()
    made = checks().get(key)
    if made is None:
        return "", ""
    module = made.function.__module__
    return _hashes((module, *(claim.module for claim in claims_of(key))))


@functools.cache
def _hashes(names: tuple[str, ...]) -> tuple[str, str]:
    own, code = split(closure(names))
    return hash_of_closure(own), hash_of_closure(code)


def _judge(
    key: str, claimed: tuple[MethodClaim, ...], evidence: Evidence | None
) -> tuple[str, str]:
    if evidence is None:
        return "none", ""
    if key in lacking():  # evidence stands; whether it is of this code cannot be told here
        return verdict_of(evidence)
    check_hash, method_hash = hashes(key)
    if key not in checks():
        return "stale", "its check is gone"
    if evidence.check_hash != check_hash:
        return "stale", "its check has changed since"
    if not claimed:
        return "stale", "no code claims the row any more"
    if evidence.method_hash != method_hash:
        return "stale", CODE_CHANGED
    return verdict_of(evidence)


def verdict_of(evidence: Evidence) -> tuple[str, str]:
    """Say what evidence of this very code shows, and why no more."""
    commits = (evidence.commit, *(one.commit for one in evidence.confirmed))
    if any(not one or one.endswith("+") for one in commits):
        return "dirty", "measured on code that no commit holds"
    if evidence.pinned:
        return "pinned", f"seeds of its own, so five seeds are one: {'; '.join(evidence.pinned)}"
    if len(set(evidence.seeds)) < len(SEEDS):
        return "few seeds", f"{len(set(evidence.seeds))} of {len(SEEDS)}"
    if evidence.unanswered:
        return "unanswered", "; ".join(evidence.unanswered)
    reasons = [
        *(f"failed: {one.says}" for one in evidence.failed),
        *(f"narrowed: {why}" for why in evidence.narrowed.values()),
        *(f"left out: {why}" for why in evidence.left_out.values()),
    ]
    if not reasons:
        return "held", ""
    broken = {one.answers for one in evidence.failed}
    some = any(one.answers not in broken for one in evidence.claims)
    return ("partly" if some else "failed"), "; ".join(reasons)


def example(claim: MethodClaim) -> str:
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


def where(claim: MethodClaim) -> str:
    """Say where a claimed object stands, as `regard/layers/moh.py:12`."""
    path = f"{claim.module.replace('.', '/')}.py"
    try:
        source = inspect.getsourcefile(claim.obj)
        if source is not None and source.endswith("__init__.py"):
            path = f"{claim.module.replace('.', '/')}/__init__.py"
        return f"{path}:{inspect.getsourcelines(claim.obj)[1]}"
    except (OSError, TypeError):
        return path
