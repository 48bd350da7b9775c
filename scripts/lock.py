"""Write requirements-ci.lock: every package that CI installs, with its version and hashes.

    python scripts/lock.py            # asks pip what it would install, and installs nothing

pip resolves the extras that `make test` needs under constraints.txt, and what builds the package.
The lock has a hash for each file that was chosen, and keeps the hashes of other files of the same
version that it had before. `make locked` installs from it by hashes alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-ci.lock"
EXTRAS = "dev,see,bench,hf,diffusers"
BUILDING = ("hatchling", "editables")
HEAD = """# Every package that CI installs, with the SHA-256 of its files: `python scripts/lock.py`
# writes this file on CI's platform (Linux on x86-64, Python 3.11, the CPU build of torch, which
# PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS must lead to; others need other files), and
# tests/test_packaging.py holds it in step with constraints.txt. `make locked` installs by it:
#
#     pip install --require-hashes --no-deps -r requirements-ci.lock && pip install --no-deps -e .
"""


def resolved() -> list[dict[str, Any]]:
    """Ask pip what it would install."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
             "--report", str(report), "-c", str(ROOT / "constraints.txt"), f"{ROOT}[{EXTRAS}]",
             *BUILDING],
            check=True,
        )  # fmt: skip
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return found


def before() -> dict[str, set[str]]:
    """Hashes in the lock as it is, by `name==version`."""
    text = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    found: dict[str, set[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split()
            found[pin] = {x.removeprefix("--hash=sha256:") for x in hashes}
    return found


def lock(installed: list[dict[str, Any]], kept: dict[str, set[str]]) -> str:
    r"""Write the lock.

    >>> one = {"metadata": {"name": "A_b", "version": "1.0+cpu"}, "download_info": {
    ...     "archive_info": {"hashes": {"sha256": "00"}}}}
    >>> lock([one], {"a-b==1.0": {"11"}}).splitlines()[-3:]
    ['a-b==1.0 \\', '    --hash=sha256:00 \\', '    --hash=sha256:11']
    """
    pins: dict[str, set[str]] = {}
    for one in installed:
        archive = one["download_info"].get("archive_info")
        if archive is None:
            continue  # the package itself
        name = re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower()
        pin = f"{name}=={one['metadata']['version'].partition('+')[0]}"
        pins[pin] = {archive["hashes"]["sha256"], *kept.get(pin, ())}
    lines = [
        " \\\n".join([pin, *(f"    --hash=sha256:{x}" for x in sorted(hashes))])
        for pin, hashes in sorted(pins.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    LOCK.write_text(lock(resolved(), before()), encoding="utf-8")
    print(f"{LOCK.name} written")


if __name__ == "__main__":
    main()
