"""Evidence: what a check measured, on what, and of which version of the code."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from regard.core.errors import VersionError, fail
from regard.papers.checks import Number

FORMAT = 1
FOLDER = Path(__file__).parent / "evidence"


@dataclass(frozen=True)
class Evidence:
    """What was measured for one row, when, where, and by which code.

    `seconds` are those of a clock on the wall, `cpu_seconds` those of processors (None in files
    written before they were counted).
    """

    key: str
    claim: str
    held: bool
    numbers: dict[str, Number]
    matches: str
    left_out: str
    long: bool
    seconds: float
    date: str
    machine: dict[str, Number]
    versions: dict[str, str]
    commit: str
    check_hash: str
    method_hash: str
    cpu_seconds: float | None = None
    format: int = FORMAT

    @property
    def cost(self) -> str:
        """Say how long it took: in seconds of processors, where they were counted."""
        if self.cpu_seconds is None:
            return f"{self.seconds:.1f} s"
        return f"{self.cpu_seconds:.1f} CPU s"


def save(evidence: Evidence, folder: Path = FOLDER) -> Path:
    """Write the evidence of one row; a reader sees the old file or the new, never a half."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = asdict(evidence)
    fields["numbers"] = {name: _finite(n) for name, n in evidence.numbers.items()}
    handle, name = tempfile.mkstemp(prefix=f".{evidence.key}.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
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
        if written == FORMAT:
            return Evidence(**fields)
        got = f"format {written}"
    except (json.JSONDecodeError, TypeError, AttributeError) as broken:
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


def _finite(number: Number) -> Number:
    """Keep the file JSON: infinities and NaN have no place in it as numbers."""
    return number if not isinstance(number, float) or math.isfinite(number) else repr(number)
