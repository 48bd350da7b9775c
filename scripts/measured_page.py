"""Write docs/measured.md from benchmarks/results: every number there comes from a committed run.

python scripts/measured_page.py           # writes the page
python scripts/measured_page.py --check   # fails if the page is not what it would write
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measured.md"
HEAD = """# Measured

Every table is a committed run of a script in `benchmarks/`, side by side in one process. *Times
faster* compares with the first row of the table, round by round: the median, and the least and most
of the rounds. Written by `scripts/measured_page.py`.
"""


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Write the rows of one case."""
    lines = ["| call | median, ms | times faster | least to most |", "|---|---:|---:|---|"]
    for row in rows:
        lines.append(
            f"| {row['call']} | {row['median_ms']:.3f} | {row['times_faster']:.2f} "
            f"| {row['least']:.2f} to {row['most']:.2f}{_unclaimed(row)} |"
        )
    return lines


def _unclaimed(row: dict[str, Any]) -> str:
    """Write why a ratio claims nothing, where it does not."""
    return f"; no claim: {row['no_claim']}" if row.get("no_claim") else ""


def section(path: Path) -> list[str]:
    """Write the tables of one file of results."""
    said = _alike(json.loads(path.read_text()))
    machine = said["machine"]
    busy = f", load {machine['load']} on {machine['cores']} cores" if "load" in machine else ""
    lines = [
        f"\n## {path.stem}\n",
        f"{machine['date']}, {machine['device']}, {machine['threads']} threads, "
        f"torch {machine['torch']}{busy}.",
    ]
    cases: dict[str, list[dict[str, Any]]] = {}

    def timed(row: dict[str, Any]) -> bool:
        return "case" in row and ("median_ms" in row or row["case"] == "memory")

    plain = [row for row in said["rows"] if not timed(row)]
    for row in said["rows"]:
        if timed(row):
            cases.setdefault(row["case"], []).append(row)
    for case, rows in cases.items():
        lines.append(f"\n**{case}**\n")
        if case == "memory":
            for row in rows:
                lines.append(
                    f"n {row['n']:,}: {row['extra_mib']:.0f} MiB above the tensors, in "
                    f"{row['seconds']:.1f} s; the matrix alone is {row['matrix_mib']:,.0f} MiB."
                )
            continue
        lines += table(rows)
    for title, name in (("growth with the length", "growth"), ("measured", "facts")):
        grown = said.get("settings", {}).get(name) or (plain if name == "facts" else None)
        if not grown:
            continue
        names = list(dict.fromkeys(key for row in grown for key in row))
        lines.append(f"\n**{title}**\n")
        lines.append(f"| {' | '.join(names)} |")
        lines.append("|---" * len(names) + "|")
        lines += [f"| {' | '.join(_said(row.get(key)) for key in names)} |" for row in grown]
    return lines


def _said(x: Any) -> str:
    """Write a cell: nothing for None, yes or no for a truth."""
    if isinstance(x, float):
        return f"{x:.4g}"
    return "" if x is None else ("no", "yes")[x] if isinstance(x, bool) else str(x)


def _alike(said: dict[str, Any]) -> dict[str, Any]:
    """Bring the results of scans, which also hold how cost grows, to the form of the others."""
    if "rows" in said:
        return said
    setting = said["setting"]
    machine = {x: setting[x] for x in ("date", "torch", "threads")}
    rows = [
        {
            "case": f"scan, {title}, n {setting['length']:,}, {setting['dtype']}",
            "call": row["method"],
            "median_ms": row["median_ms"],
            "times_faster": row["times_faster"],
            "least": row["times_faster_least"],
            "most": row["times_faster_most"],
            "no_claim": row.get("no_claim", ""),
        }
        for title in ("forward", "forward and backward")
        for row in said[title]
    ]
    return {"machine": machine | {"device": setting["processor"]}, "rows": rows}


def page() -> str:
    """Write the whole page."""
    lines = [HEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        held = json.loads(path.read_text()).keys()
        if held & {"cells", "sweeps"} or not held & {"rows", "setting"}:
            continue  # docs/shrink.md, docs/bench.md and pages of their own have them
        lines += section(path)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text() == page() else "docs/measured.md is old: write it again")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
