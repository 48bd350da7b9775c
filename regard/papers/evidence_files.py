"""Evidence: what a check measured, on what, and of which version of the code."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from regard.core.errors import VersionError, fail
from regard.papers.claims import Number

FORMAT = 2
FOLDER = Path(__file__).parent / "evidence"
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class MeasuredClaim:
    """One claim as it was measured: a number for each seed.

    `answers` is the whole sentence of the catalogue. `margin` is by how much the claim holds,
    negative where it does not; `bound` is the comparator with its factor and difference.
    """

    answers: str
    says: str
    relation: str
    against: str
    because: str
    over: str
    independent: bool
    held: bool
    measured: list[Number]
    comparator: list[Number]
    bound: list[Number]
    margin: list[Number]


@dataclass(frozen=True)
class Confirmation:
    """One seed of old evidence, run again on later code, gave every number that it had given."""

    seed: int
    commit: str
    date: str


@dataclass(frozen=True)
class Evidence:
    """What was measured for one row, when, where, and by which code.

    `narrowed` and `left_out` map sentences of the catalogue to what was asked less, or why nothing
    was; `unanswered` are the sentences that are neither answered nor explained. `pinned` names
    seeds that did not come from the runner. `seconds` (of a clock) and `cpu_seconds` (of
    processors) are those of one seed. `commit` is what all seeds ran on; the hashes are those of
    the last of `confirmed`, where there is one.
    """

    key: str
    claims: list[MeasuredClaim]
    narrowed: dict[str, str]
    left_out: dict[str, str]
    unanswered: list[str]
    beyond: str
    pinned: list[str]
    same: str
    seeds: list[int]
    long: bool
    seconds: float
    cpu_seconds: float
    date: str
    machine: dict[str, Number]
    versions: dict[str, str]
    commit: str
    check_hash: str
    method_hash: str
    confirmed: list[Confirmation] = field(default_factory=list)
    format: int = FORMAT

    @property
    def held(self) -> bool:
        """Whether every claim held."""
        return bool(self.claims) and all(one.held for one in self.claims)

    @property
    def cost(self) -> str:
        """Say what one seed costs, in seconds of processors."""
        return f"{self.cpu_seconds:.1f} CPU s a seed"

    @property
    def failed(self) -> list[MeasuredClaim]:
        """The claims that did not hold."""
        return [one for one in self.claims if not one.held]


def save(evidence: Evidence, folder: Path = FOLDER) -> Path:
    """Write the evidence of one row; a reader sees the old file or the new, never a half."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = _finite(asdict(evidence))
    handle, name = tempfile.mkstemp(prefix=f".{evidence.key}.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            text = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False)
            file.write(_narrow(text) + "\n")
        os.chmod(name, 0o644)  # mkstemp keeps it from everyone else
        os.replace(name, path := folder / f"{evidence.key}.json")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def load(key: str, folder: Path = FOLDER) -> Evidence | None:
    """Read the evidence of one row, or None where there is none."""
    path = folder / f"{key}.json"
    if not path.exists():
        return None
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = fields.get("format")
        if written == 1:
            return None  # one verdict of one seed: it shows nothing that counts
        if written == FORMAT:
            claims = [MeasuredClaim(**one) for one in fields.pop("claims")]
            confirmed = [Confirmation(**one) for one in fields.pop("confirmed", [])]
            return Evidence(claims=claims, confirmed=confirmed, **fields)
        got = f"format {written}"
    except (json.JSONDecodeError, TypeError, AttributeError, KeyError) as broken:
        got = f"a file that cannot be read ({broken})"
    fail(
        VersionError,
        path.name,
        got,
        f"evidence of format {FORMAT}",
        f"run `regard papers check {key} --again`",
    )


def machine() -> dict[str, Number]:
    """Say what kind of machine this is: its processor and cores, never its name."""
    model = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        lines = about.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    return {"cpu": model, "cores": os.cpu_count() or 1, "system": platform.system()}


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("regard", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was never installed
            from regard import __version__

            found[name] = __version__
    return found


def commit() -> str:
    """Commit of the checkout, with `+` where the package has changes on top; '' outside of git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        # The evidence that this run writes is no change of the code.
        where = ("--", "regard", ":!regard/papers/evidence")
        return head + ("+" if _git(root, "status", "--porcelain", *where) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *words: str) -> str:
    ran = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return ran.stdout.strip()


def _finite(value: Any) -> Any:
    """Keep the file JSON: infinities and NaN have no place in it as numbers."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else repr(value)


def _narrow(text: str) -> str:
    """Put lists of numbers on one line each, so that a file is read as a table."""
    return re.sub(
        r"\[\s+((?:[^\[\]{}\"]|\"[a-z]+\")+?)\s+\]",
        lambda found: f"[{' '.join(found[1].split())}]",
        text,
    )
