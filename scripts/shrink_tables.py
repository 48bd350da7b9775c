"""Write the measured tables of docs/shrink.md and docs/shrink-vision.md in their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "shrink.md"
VISION = ROOT / "docs" / "shrink-vision.md"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def quality() -> str:
    """Every policy at every budget."""
    lines = ["| policy | keep | needles | recalled | bits a byte | bytes | FLOPs |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for c in read("shrink-demo")["cells"]:
        keep = "" if c["keep"] is None else c["keep"]
        lines.append(
            f"| {c['policy']} | {keep} | {c['needle']:.2f} | {c['recall']:.2f} | {c['bits']:.3f} | "
            f"{c['bytes']:.0%} | {c['flops']:.0%} |"
        )
    return "\n".join(lines)


def speed() -> str:
    """Times as fast as dense, with the least and the most of the rounds."""
    lines = ["| case | call | times as fast | least to most |", "|---|---|---|---|"]
    for r in read("shrink-cpu")["rows"]:
        lines.append(
            f"| {r['case']} | {r['call']} | {r['times_faster']:.2f} | "
            f"{r['least']:.2f} to {r['most']:.2f} |"
        )
    return "\n".join(lines)


def peers() -> str:
    """Keys kept by both."""
    lines = ["| method | keys kept | the same in both |", "|---|---|---|"]
    for r in read("kept-as-kvpress")["rows"]:
        lines.append(f"| {r['method']} | {r['kept']:,} | {r['same']:,} |")
    return "\n".join(lines)


def vision() -> str:
    """Times as fast as dense, beside the pairs that are computed."""
    lines = ["| case | call | pairs | times as fast | least to most |", "|---|---|---|---|---|"]
    for r in read("shrink-vision")["rows"]:
        pairs = f"{r['pairs']:.0%}" if "pairs" in r else ""
        lines.append(
            f"| {r['case']} | {r['call']} | {pairs} | {r['times_faster']:.2f} | "
            f"{r['least']:.2f} to {r['most']:.2f} |"
        )
    return "\n".join(lines)


def put(page: Path, tables: dict[str, str]) -> None:
    """Write tables between their marks."""
    text = page.read_text(encoding="utf-8")
    for mark, made in tables.items():
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        block = f"{begin}\n\n{made}\n\n{end}"
        if begin in text:
            before, rest = text.split(begin, 1)
            text = before + block + rest.split(end, 1)[1]
        else:
            text = text.replace(f"\n{mark}\n", f"\n{block}\n", 1)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    put(PAGE, {"TABLE": quality(), "SPEED": speed(), "PEERS": peers()})
    put(VISION, {"SPEED": vision()})


if __name__ == "__main__":
    main()
