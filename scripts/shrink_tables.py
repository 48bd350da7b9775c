"""Write the measured tables of docs/shrink.md and docs/shrink-vision.md in their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regard.bench.shrunk_cells import Cell, read_cells

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "shrink.md"
VISION = ROOT / "docs" / "shrink-vision.md"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def quality() -> str:
    """Every policy in a line: needles at three budgets, the rest at the middle one."""
    cells = read_cells(RESULTS / "shrink-demo.json")
    by_policy: dict[str, dict[str | None, Cell]] = {}
    for cell in cells:
        by_policy.setdefault(cell.policy, {})[cell.keep] = cell
    full = by_policy["full"][None]
    assert full.needle is not None
    assert full.recall is not None
    lines = [f"| policy | needles of {full.needle.total}, at 10%, 25%, 50% | keys recalled of "
             f"{full.recall.total} | bits a byte | bytes | FLOPs |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name in ("full", *sorted(x for x in by_policy if x != "full")):
        own = by_policy[name]
        c = own.get("25%", own.get(None))
        if c is None:
            continue
        found = [own[k].needle for k in ("10%", "25%", "50%") if k in own] or [c.needle]
        link = name if name == "full" else f"[{name}](policies/{name}.md)"
        lines.append(
            f"| {link} | {', '.join(str(x.right) for x in found if x)} | "
            f"{'' if c.recall is None else c.recall.right} | "
            f"{c.bits:.3f} | {c.bytes:.0%} | {c.flops:.0%} |"
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
    lines = ["| method | keys kept | the same in both | others of the same score |",
             "|---|---|---|---|"]  # fmt: skip
    for r in read("kept-as-kvpress")["rows"]:
        lines.append(f"| {r['method']} | {r['kept']:,} | {r['same']:,} | {r['tied']} |")
    return "\n".join(lines)


def said(x: float | None) -> str:
    """A number, or that there is none."""
    return "broke" if x is None else f"{x:.2f}"


def beside() -> str:
    """Each method as kvpress has it, and as we have it."""
    lines = ["| method | keep | by | needles | recalled | bits a byte | bytes | prompt | step "
             "| 50M: prompt | step |", "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in read("beside-kvpress")["rows"]:
        bits = "broke" if r["bits"] is None else f"{r['bits']:.3f}"
        lines.append(
            f"| {r['method']} | {r['keep']} | {r['by']} | {said(r['needle'])} | "
            f"{said(r['recall'])} | {bits} | {r['bytes']:,} | {r['prompt_of_full']:.2f}x | "
            f"{r['step_of_full']:.2f}x | {larger(r)} |"
        )
    return "\n".join(lines)


def larger(row: dict[str, Any]) -> str:
    """Times on the larger model, where they were taken."""
    found = [row.get(f"larger_{name}_of_full") for name in ("prompt", "step")]
    return " | ".join("" if x is None else f"{x:.2f}x" for x in found)


def caches() -> str:
    """Quantized and offloaded, ours and those of transformers."""
    lines = ["| what | by | needles | recalled | bits a byte | bytes | in files | step |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in read("beside-transformers")["rows"]:
        if "refused" in r:
            lines.append(f"| {r['what']} | {r['by']} | {r['refused']} | | | | | |")
            continue
        lines.append(
            f"| {r['what']} | {r['by']} | {said(r['needle'])} | {said(r['recall'])} | "
            f"{r['bits']:.3f} | {r['bytes']:,} | {r['file_bytes']:,} | {r['step_of_full']:.2f}x |"
        )
    return "\n".join(lines)


def steps() -> str:
    """A decoded token of ours by kvpress' and by the bare model's, in one process."""
    lines = ["| model | ours | beside | ours, ms | theirs, ms | ours by theirs | middle half |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in (*read("decode-beside-bare")["rows"], *read("decode-beside-kvpress")["rows"]):
        lines.append(
            f"| {r['model']} | {r['ours']} | {r['beside']} | {r['ours_ms']:.2f} | "
            f"{r['theirs_ms']:.2f} | {r['ratio']:.2f} | {r['low']:.2f} to {r['high']:.2f} |"
        )
    return "\n".join(lines)


def freed() -> str:
    """Bits a byte at small budgets, if steps free one token or some."""
    lines = ["| policy | tokens kept | bits a byte, one freed | some freed | more |",
             "|---|---|---|---|---|"]  # fmt: skip
    for r in read("small-budgets")["rows"][1:]:
        lines.append(
            f"| {r['policy']} | {r['tokens']} | {r['bits_one']:.3f} | {r['bits_some']:.3f} | "
            f"{r['bits_more']:.3f} |"
        )
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
    put(PAGE, {
        "TABLE": quality(), "SPEED": speed(), "PEERS": peers(), "BESIDE": beside(),
        "CACHES": caches(), "STEPS": steps(), "FREED": freed(),
    })  # fmt: skip
    put(VISION, {"SPEED": vision()})


if __name__ == "__main__":
    main()
