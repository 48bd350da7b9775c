"""Write docs/evidence-changes.md: what each row's check asked and found before, and now.

    python scripts/evidence_changes.py

What was before is read from the commit before the new form: the states as its own code computes
them, and the evidence files and sources of checks as they were. What is now is read from the
evidence that is committed. Run it again after measuring.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from evidence_findings import BUILT, FOUND  # noqa: E402

from regard.papers.checks import checks  # noqa: E402
from regard.papers.evidence_files import Evidence, MeasuredClaim  # noqa: E402
from regard.papers.pages import _plain  # noqa: E402
from regard.papers.standing import STATES, Standing, standings  # noqa: E402

BEFORE = "c5d4556^"  # the commit before "Evidence: claims that answer sentences of the catalogue"
PAGE = ROOT / "docs" / "evidence-changes.md"
STATES_OF = (
    "import json; from regard.papers.standing import standings; "
    "print(json.dumps({one.row.key: one.state for one in standings()}))"
)
HEAD = """# What the new evidence changed

Until November 2026 a row was `shown` when its check passed once, with a seed that the check chose.
Now a check answers every sentence of the catalogue, over five seeds of the runner
([what evidence is](evidence.md)). This page holds each row with a check: its state then and now,
what was asked then and what is claimed now, and why. `python scripts/evidence_changes.py` writes it
from the history and from the evidence that is committed.
"""
NAMED = """
## Rows that a review named

The review of November 2026 read every check, ran many with other seeds and sizes, and listed what
it found. Each row of its lists is here; what is asked of it is in [the table of all](#all-rows).
"""
ALL = """
## All rows

*Asked then* is the one sentence of the old evidence, and *left out* what it said it did not ask.
*Claimed now* has the least and the largest number of five seeds, and what each is compared with.
"""


class Before(NamedTuple):
    """A row as it was: its state, what its check asked and left out, and how it was measured."""

    state: str = "planned"
    asked: str = ""
    left_out: str = ""
    pinned: bool = False  # a seed in the check or in a function of its module that it calls
    dirty: bool = False  # on code that no commit held


def rows_before(commit: str = BEFORE) -> dict[str, Before]:
    """Read every row of a commit: states by its own code, the rest from its files."""
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
        papers = Path(folder) / "regard" / "papers"
        pinned = {
            key for path in papers.glob("checks/*.py") for key in pinned_in(path.read_text("utf-8"))
        }
        states: dict[str, str] = json.loads(said.splitlines()[-1])
        rows = {}
        for key, state in states.items():
            path = papers / "evidence" / f"{key}.json"
            old = json.loads(path.read_text("utf-8")) if path.is_file() else {}
            rows[key] = Before(
                state, old.get("claim", ""), old.get("left_out", ""), key in pinned,
                old.get("commit", "").endswith("+"),
            )  # fmt: skip
    return rows


def pinned_in(source: str) -> set[str]:
    """Return the keys of checks in a module that set a seed, themselves or by what they call."""
    functions = {x.name: x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef)}
    names = {
        name: {x.id for x in ast.walk(made) if isinstance(x, ast.Name)}
        | {x.attr for x in ast.walk(made) if isinstance(x, ast.Attribute)}
        for name, made in functions.items()
    }
    found = set()
    for name, made in functions.items():
        reached, waiting = set(), [name]
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += [x for x in names[one] if x in functions]
        if any("manual_seed" in names[one] for one in reached):
            for mark in made.decorator_list:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "check":
                    found |= {x.value for x in mark.args if isinstance(x, ast.Constant)}
    return found


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


def changed(was: Before, one: Standing) -> str:
    """Say what is different: the form of then, the seeds, and what is said aloud now."""
    said = []
    if was.asked:
        said.append("then one run" + (", its seed set in the check" if was.pinned else ""))
        if was.dirty:
            said.append("on code that no commit held")
    said.append(f"now {why(one)}")
    found = one.evidence
    silent = was.asked and not was.left_out
    if silent and found is not None and (found.narrowed or found.left_out):
        said.append("which was not said then")
    return "; ".join(said)


def number(x: object) -> str:
    """Write one number in three digits, words and counts as they are.

    >>> number(0.123456), number(12), number(True), number("left")
    ('0.123', '12', 'True', 'left')
    """
    return f"{x:.3g}" if isinstance(x, float) else str(x)


def spread(values: list[object]) -> str:
    """Write the least and the largest of the seeds, or the one number that all are.

    >>> spread([0.5, 0.25, 1.0]), spread([3, 3])
    ('0.25 to 1', '3')
    """
    numeric = all(isinstance(x, (int, float)) for x in values)
    ends = [min(values), max(values)] if numeric else list(dict.fromkeys(map(str, values)))  # type: ignore[type-var]
    written = list(dict.fromkeys(number(x) for x in ends))
    return (" to " if numeric else ", ").join(written)


def in_words(claim: MeasuredClaim) -> str:
    """Write a claim: what was measured, the numbers, and what it is compared with."""
    words = f"{claim.says}: {spread(list(claim.measured))}"
    if claim.relation == "within":
        words += f", within {spread(list(claim.bound))} of {claim.against}"
    else:
        words += f", {claim.relation} {spread(list(claim.bound))} ({claim.against})"
    return words if claim.held else f"{words}: **fails**"


def claimed(found: Evidence | None) -> str:
    """Write all claims of a row."""
    return "none" if found is None else "; ".join(in_words(claim) for claim in found.claims)


def asked(was: Before) -> str:
    """Write what the old check asked, and what it said that it left out."""
    if not was.asked:
        return "no check"
    return was.asked + (f" (left out: {was.left_out})" if was.left_out else "")


def named(before: Mapping[str, Before], now: Mapping[str, Standing]) -> list[str]:
    """Write the lists of the review, a line for each row."""
    lines = [NAMED]
    for title, rows in FOUND.items():
        lines += [
            f"### {title}",
            "",
            "| row | found | before | now | why |",
            "|---|---|---|---|---|",
        ]
        for key, what in rows.items():
            one, was = now[key], before.get(key, Before())
            reason = changed(was, one)
            if (title, key) in BUILT:
                reason = f"{BUILT[title, key]}; {reason}"
            lines.append(f"| `{key}` | {what} | {was.state} | {one.state} | {_plain(reason)} |")
        lines.append("")
    return lines


def page(before: Mapping[str, Before], now: list[Standing]) -> str:
    """Make the page from the rows of then and the standings of now."""
    rows = [one for one in now if one.row.key in checks()]
    counts = Counter((before.get(one.row.key, Before()).state, one.state) for one in rows)
    ends = [state for state in STATES if any(state == after for _, after in counts)]
    lines = [HEAD, f"| before | {' | '.join(f'now {state}' for state in ends)} |"]
    lines.append(f"|---|{'---:|' * len(ends)}")
    for was in dict.fromkeys(was for was, _ in counts):
        lines.append(f"| {was} | {' | '.join(str(counts[was, state]) for state in ends)} |")
    lines += named(before, {one.row.key: one for one in now})
    lines += [ALL, "| row | before | now | why | asked then | claimed now |", "|---|" + "---|" * 5]
    for one in rows:
        was = before.get(one.row.key, Before())
        cells = (changed(was, one), asked(was), claimed(one.evidence))
        cells = tuple(_plain(x).replace("\n", " ") for x in cells)
        lines.append(f"| `{one.row.key}` | {was.state} | {one.state} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    PAGE.write_text(page(rows_before(), standings()), encoding="utf-8")


if __name__ == "__main__":
    main()
