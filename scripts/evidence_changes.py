"""Write docs/evidence-changes.md: each row's state before evidence was of claims, and now.

    python scripts/evidence_changes.py

The states before are computed by the code of the commit before the new form, from its own evidence
files; those of now by this code, from the evidence that is committed. Run it again after measuring.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from regard.papers.checks import checks
from regard.papers.pages import _plain
from regard.papers.standing import STATES, Standing, standings

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "c5d4556^"  # the commit before "Evidence: claims that answer sentences of the catalogue"
PAGE = ROOT / "docs" / "evidence-changes.md"
STATES_OF = (
    "import json; from regard.papers.standing import standings; "
    "print(json.dumps({one.row.key: one.state for one in standings()}))"
)
HEAD = """# What the new evidence changed

Until November 2026 a row was `shown` when its check passed once, with a seed that the check chose.
Now a check answers every sentence of the catalogue, over five seeds of the runner
([what evidence is](evidence.md)). This page holds each row with a check: its state then, its state
now, and why. `python scripts/evidence_changes.py` writes it from the history and from the evidence
that is committed.
"""


def states_before(commit: str = BEFORE) -> dict[str, str]:
    """Compute the state of every row at a commit, by the code of that commit."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["git", "archive", commit, "regard"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        said = subprocess.run(
            [sys.executable, "-c", STATES_OF],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": folder, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        ).stdout
    states: dict[str, str] = json.loads(said.splitlines()[-1])
    return states


def why(one: Standing) -> str:
    """Say what a state rests on, or what keeps it from being shown."""
    found = one.evidence
    if found is None:
        return "not measured in the new form"
    if one.state == "built":
        return f"{one.verdict}: {one.why}" if one.why else one.verdict
    held = sum(each.held for each in found.claims)
    counted = f"{held} of {len(found.claims)} claims held in {len(found.seeds)} seeds"
    return f"{counted}; {one.why}" if one.why else counted


def page(before: dict[str, str], now: list[Standing]) -> str:
    """Make the page from the states of then and the standings of now."""
    rows = [one for one in now if one.row.key in checks()]
    counts = Counter((before.get(one.row.key, "planned"), one.state) for one in rows)
    ends = [state for state in STATES if any(state == after for _, after in counts)]
    lines = [HEAD, f"| before | {' | '.join(f'now {state}' for state in ends)} |"]
    lines.append(f"|---|{'---:|' * len(ends)}")
    for was in dict.fromkeys(was for was, _ in counts):
        lines.append(f"| {was} | {' | '.join(str(counts[was, state]) for state in ends)} |")
    lines += ["", "| row | before | now | why |", "|---|---|---|---|"]
    for one in rows:
        was = before.get(one.row.key, "planned")
        lines.append(f"| `{one.row.key}` | {was} | {one.state} | {_plain(why(one))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    PAGE.write_text(page(states_before(), standings()), encoding="utf-8")


if __name__ == "__main__":
    main()
