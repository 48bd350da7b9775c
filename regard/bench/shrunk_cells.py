"""Measurements of a shrunk model: cells, as rows of a table, as sentences, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regard.bench.drawing import short
from regard.bench.kept_cells import CELLS
from regard.bench.shrunk_costs import Rate
from regard.bench.statistics import Count
from regard.core.files import read_json, reading
from regard.policies.budget import Budget

COUNTS = ("needle", "recall")
# The column heading of each measure, and what it counts.
HEADINGS = {"needle": "needles found (95%)", "recall": "keys recalled (95%)",
            "bits": "bits per byte"}  # fmt: skip
WHAT = {"needle": "needles", "recall": "keys"}
# Relative excess in bits per byte up to which a model counts as good as the full one.
MORE_BITS = 0.01


@dataclass(frozen=True)
class Cell:
    """One policy at one budget.

    `keep` is the budget with its unit (`25%`, `256tok`, `4MiB`); `needle` and `recall` count the
    keys said right, `bits` are bits per byte of text, `kl` is the mean divergence (nats) of
    next tokens on that text from those of the full model, `bytes` and `flops` are shares of what
    the full model takes, `prompt` and `decode` tokens a second, `peak` bytes of memory (on a CPU,
    of the largest tensor); `refused` says why nothing was measured.
    """

    policy: str
    keep: str | None
    needle: Count | None = None
    recall: Count | None = None
    bits: float | None = None
    bytes: float | None = None
    flops: float | None = None
    kl: float | None = None
    prompt: Rate | None = None
    decode: Rate | None = None
    peak: int | None = None
    seconds: float = 0.0
    refused: str = ""

    @property
    def label(self) -> str:
        """Policy and budget in words."""
        return self.policy if self.keep is None else f"{self.policy} at {self.keep}"


def fails(full: Cell, measure: str) -> bool:
    """Return whether the full model gets under half of a test right, which makes it useless.

    >>> fails(Cell("full", None, needle=Count(1, 12)), "needle")
    True
    """
    found = getattr(full, measure)
    return isinstance(found, Count) and found.share < 0.5


def lost(cell: Cell, full: Cell) -> tuple[list[str], list[str]]:
    """Return what a cell loses against the full model, and what it may lose.

    A count that is lower is a loss where the two 95% intervals are apart; where they overlap, the
    prompts are too few to tell.

    >>> lost(Cell("h2o", "5%", needle=Count(1, 12)), Cell("full", None, needle=Count(12, 12)))
    (['needles (1 of 12, not 12)'], [])
    """
    sure: list[str] = []
    maybe: list[str] = []
    for measure in COUNTS:
        here, there = getattr(cell, measure), getattr(full, measure)
        if here is None or there is None or fails(full, measure) or here.right >= there.right:
            continue
        apart = here.interval[1] < there.interval[0]
        said = f"{WHAT[measure]} ({here.right} of {here.total}, not {there.right})"
        (sure if apart else maybe).append(said)
    if cell.bits is not None and full.bits and cell.bits > full.bits * (1 + MORE_BITS):
        sure.append(f"{cell.bits / full.bits - 1:.0%} more bits a byte")
    return sure, maybe


def advice(cell: Cell, full: Cell) -> str:
    """Summarize a cell in one line.

    >>> full = Cell("full", None, Count(12, 12), bits=0.8, bytes=1.0, flops=1.0)
    >>> advice(Cell("h2o", "25%", Count(11, 12), bits=0.801, bytes=0.26, flops=0.9), full)
    'may lose needles (11 of 12, not 12): too few to tell, with 26% of the bytes'
    >>> advice(Cell("h2o", "5%", Count(1, 12), bits=0.9, bytes=0.06, flops=0.9), full)
    'loses needles (1 of 12, not 12) and 12% more bits a byte, with 6% of the bytes'
    """
    if cell.refused:
        return f"refused: {cell.refused}"
    tests = [m for m in COUNTS if getattr(cell, m) is not None]
    blind = [m for m in tests if fails(full, m)]
    if cell.policy == "full":
        told = [f"fails the test of {WHAT[m]}, which says nothing of the others" for m in blind]
        return "; ".join(told) or "what the others are read against"
    share = cell.bytes if cell.bytes is not None and cell.bytes < 0.97 else None
    cost = "saving no memory"
    if share is not None:
        cost = f"with {share:.0%} of the bytes"
    elif cell.flops is not None and cell.flops < 0.97:
        cost = f"with {cell.flops:.0%} of the FLOPs of attention"
    cost += faster(cell, full)
    sure, maybe = lost(cell, full)
    if sure or maybe:
        parts = [f"loses {' and '.join(sure)}"] if sure else []
        parts += [f"may lose {' and '.join(maybe)}: too few to tell"] if maybe else []
        return f"{'; '.join(parts)}, {cost}"
    counts = [getattr(cell, m) for m in tests if m not in blind]
    names = [WHAT[m] for m in tests if m not in blind]
    told = [f"{c.right} of {c.total} {name}" for c, name in zip(counts, names, strict=True)]
    if not told and cell.bits is None:
        return f"nothing measured that the full model passes, {cost}"
    if cell.bits is not None and not told:
        told = [f"{cell.bits:.3f} bits a byte"]
    return f"{' and '.join(told)}, as the full model, {cost}"


def faster(cell: Cell, full: Cell) -> str:
    """Return how fast a cell is beside the full model, where the spreads of the two are apart.

    >>> full = Cell("full", None, prompt=Rate(90, 100, 110), decode=Rate(9, 10, 11))
    >>> faster(Cell("h2o", "25%", prompt=Rate(95, 105, 115), decode=Rate(14, 15, 16)), full)
    ', 1.5x as fast when decoding'
    """
    said = ""
    for what, when in (("prompt", "at the prompt"), ("decode", "when decoding")):
        here, there = getattr(cell, what), getattr(full, what)
        times = None if here is None or there is None else here.times(there)
        said += "" if times is None else f", {times:.2g}x as fast {when}"
    return said


def recommended(cells: Sequence[Cell]) -> str:
    """Name the cell that keeps least of those as good as the full model."""
    full = next((c for c in cells if c.policy == "full"), None)
    measured = [c for c in cells if c is not full and not c.refused and c.bytes is not None]
    if full is None or not measured:
        return ""
    judged = any(
        getattr(full, m) is not None and not fails(full, m) for m in (*COUNTS, "bits")
    )  # fmt: skip
    if not judged:
        return "the full model fails every test that was asked: nothing here tells policies apart"
    saving = [c for c in measured if (c.bytes or 1.0) < 0.97 and not lost(c, full)[0]]
    good = [c for c in saving if not lost(c, full)[1]]
    if not saving:
        return "no policy here saves memory and is as good as the full model"
    best = min(good or saving, key=lambda c: c.bytes or 1.0)
    claim = "as good as the full model" if good else "that may be as good as the full model"
    return f"{best.label} keeps least of those {claim}: {advice(best, full)}"


def level(cell: Cell, measure: str) -> float | None:
    """Return a measure as a number: of a count, its share.

    >>> level(Cell("h2o", "25%", needle=Count(3, 4)), "needle")
    0.75
    """
    found = getattr(cell, measure)
    return found.share if isinstance(found, Count) else found


def frontier(cells: Sequence[Cell], measure: str) -> list[Cell]:
    """Return the cells that no other beats in bytes and in a measure at once, by bytes.

    >>> some = [Cell("a", None, bits=0.9, bytes=0.2), Cell("b", None, bits=1.0, bytes=0.3),
    ...         Cell("c", None, bits=0.8, bytes=0.4)]
    >>> [cell.policy for cell in frontier(some, "bits")]
    ['a', 'c']
    """
    up = -1.0 if measure in COUNTS else 1.0  # more is better of counts, less of bits and of KL
    known = [
        (c.bytes, up * x, c) for c in cells if c.bytes and (x := level(c, measure)) is not None
    ]
    found: list[Cell] = []
    best = float("inf")
    for _, bad, cell in sorted(known, key=lambda x: x[:2]):
        if bad < best:
            found.append(cell)
            best = bad
    return found


def rows(cells: Sequence[Cell], measures: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return headings and a row of words for each cell."""
    full = next((c for c in cells if c.policy == "full"), Cell("full", None))
    head = ["policy", "keep", *(HEADINGS[m] for m in measures), "KL, nats", "bytes of full",
            "FLOPs of full", "prompt, tokens/s", "decode, tokens/s", "peak memory",
            "in a line"]  # fmt: skip

    def said(cell: Cell, measure: str) -> str:
        found = getattr(cell, measure)
        if found is None:
            return "-"
        if isinstance(found, Count):
            return f"{found}: fails" if cell is full and fails(full, measure) else str(found)
        return f"{found:.3f}"

    def share(x: float | None) -> str:
        return "-" if x is None else f"{x:.1%}"

    return head, [
        [c.policy, c.keep or "", *(said(c, m) for m in measures),
         "-" if c.kl is None else f"{c.kl:.3f}", share(c.bytes), share(c.flops),
         *("-" if x is None else str(x) for x in (c.prompt, c.decode)),
         "-" if c.peak is None else short(c.peak) + "B", advice(c, full)]
        for c in cells
    ]  # fmt: skip


def as_fields(cell: Cell) -> dict[str, Any]:
    """Return a cell for JSON: counts as `[right, total]`, rates as `[low, middle, high]`."""
    return {
        name: list(x.values()) if isinstance(x, dict)
        else round(x, 4) if isinstance(x, float) else x
        for name, x in asdict(cell).items()
    }  # fmt: skip


def cell_of(row: dict[str, Any], setting: dict[str, Any]) -> Cell:
    """Read a cell; shares written by an earlier version become counts.

    >>> old = {"policy": "h2o", "keep": 0.25, "needle": 0.3333}
    >>> cell_of(old, {"depths": [0.1, 0.5, 0.9], "draws": 4, "keys": 4})
    Cell(policy='h2o', keep='25%', needle=Count(right=4, total=12), ...)
    """
    row = dict(row)
    asked = {
        "needle": len(setting.get("depths", ())) * setting.get("draws", 0),
        "recall": setting.get("draws", 0) * setting.get("keys", 0),
    }
    for measure, total in asked.items():
        found = row.get(measure)
        if isinstance(found, list):
            row[measure] = Count(*found)
        elif found is not None:
            row[measure] = Count(round(found * total), total)
    for rate in ("prompt", "decode"):
        if row.get(rate) is not None:
            row[rate] = Rate(*row[rate])
    if isinstance(row.get("keep"), int | float):
        row["keep"] = Budget.of(row["keep"]).label
    return Cell(**row)


def read_cells(path: Path) -> list[Cell]:
    """Read the cells of a file, of any model."""
    with reading(path, CELLS):
        said = read_json(path, CELLS)
        rows = [{k: x for k, x in row.items() if k != "of"} for row in said["cells"]]
        return [cell_of(row, said["setting"]) for row in rows]
