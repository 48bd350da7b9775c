"""The results of a sweep: cells of layer and task, as tables and files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regard.bench.records import (
    RESULTS,
    SWEEP,
    BenchError,
    TrainingRun,
    read_all,
    read_record,
    read_speed,
    record_path,
)
from regard.bench.statistics import MeanInterval, Scores, above_chance, estimate
from regard.bench.sweep import SweepPlan
from regard.core.errors import fail, need
from regard.core.files import (
    begins_as_ours,
    read_json,
    reading,
    set_aside,
    word_for,
    write_bytes,
    write_json,
)
from regard.core.hashes import hash_of_code
from regard.core.html_table import html_table, padded_rows
from regard.core.picture_files import MADE_BY


@dataclass(frozen=True)
class Results:
    """Records of a sweep, the runs left out, and measured speeds."""

    records: tuple[dict[str, Any], ...]
    planned: int
    left_out: tuple[tuple[str, str, str, str], ...] = ()
    speed: tuple[dict[str, Any], ...] = ()
    title: str = "Layers compared"
    budget: str = ""
    plan: str = ""

    @property
    def origin(self) -> str:
        """A word for what they are results of: the plan of a sweep, or what was measured.

        >>> Results((), 0).origin == Results((), 0, budget="5m").origin
        False
        """
        if self.plan:
            return self.plan
        runs = sorted(json.dumps(r["run"], sort_keys=True) for r in self.records)
        sizes = sorted(repr([x.get(n) for n in ("who", "what", "n")]) for x in self.speed)
        return word_for(self.title, self.budget, runs, sizes)

    @property
    def layers(self) -> list[str]:
        """The layers, in the order of the command."""
        asked = [r["run"]["layer"] for r in self.records] + [r["who"] for r in self.speed]
        return list(dict.fromkeys(asked))

    @property
    def cells(self) -> list[str]:
        """Tasks with their patterns."""
        return list(dict.fromkeys(cell_of(r) for r in self.records))

    def of(self, layer: str, cell: str) -> list[dict[str, Any]]:
        """Return records of a layer on a task, by seed."""
        return [r for r in self.records if r["run"]["layer"] == layer and cell_of(r) == cell]

    def scores(self) -> tuple[Scores, Scores]:
        """Return scores above chance, and their errors from test rows, by layer, cell and seed."""
        scores: dict[str, dict[str, list[float]]] = {}
        errors: dict[str, dict[str, list[float]]] = {}
        for r in self.records:
            layer, cell = r["run"]["layer"], cell_of(r)
            value = 0.0 if r["score"] is None else above_chance(r["score"], r["chance"])
            first = next(iter(r["tests"].values()))
            scale = 1 / (1 - r["chance"])
            scores.setdefault(layer, {}).setdefault(cell, []).append(value)
            errors.setdefault(layer, {}).setdefault(cell, []).append((first["error"] or 0) * scale)
        return scores, errors

    def score(self, layer: str, cell: str, test: str | None = None) -> MeanInterval | None:
        """Return the raw score of a layer on a task, or on one of its tests, with its interval."""
        found = [next(iter(r["tests"].values())) if test is None else r["tests"].get(test)
                 for r in self.of(layer, cell)]  # fmt: skip
        known = [x for x in found if x is not None and x["score"] is not None]
        if not known:
            return None
        return estimate([x["score"] for x in known], [x["error"] or 0 for x in known])

    def rows(self) -> list[tuple[str, ...]]:
        """Return scores by task as text: a row of headings, then a row for each layer."""
        lines: list[tuple[str, ...]] = [("layer", *self.cells)]
        for layer in self.layers:
            found = [self.score(layer, cell) for cell in self.cells]
            said = (
                "-" if x is None else f"{x.mean:.1%} ({x.low:.1%} to {x.high:.1%})" for x in found
            )
            lines.append((layer, *said))
        return lines

    def __str__(self) -> str:
        done = f"{len(self.records)} of {self.planned} runs"
        return "\n".join([f"{self.title}: {done}", *padded_rows(self.rows())])

    def _repr_html_(self) -> str:
        from regard.bench.findings import findings

        head, *rows = self.rows()
        return html_table(str(self).splitlines()[0], head, rows, findings(self))


def cell_of(record: dict[str, Any]) -> str:
    """Name the task and the pattern of a record."""
    run = record["run"]
    return f"{run['task']} ({run['pattern']})"


def gathered(plan: SweepPlan, folder: Path, *, code: str | None = None, **more: Any) -> Results:
    """Read the finished records of a plan, of the same code only."""
    code = hash_of_code() if code is None else code
    paths = [record_path(folder, run) for run in plan.runs]
    records = tuple(read_record(path) for path in paths if path.exists())
    records = tuple(r for r in records if r["inputs"].get("code") == code)
    named = word_for([asdict(run) for run in plan.runs], plan.budget, plan.left_out)
    return Results(
        records, len(plan.runs), plan.left_out, budget=plan.budget, plan=named, **more
    )  # fmt: skip


def read_folder(folder: Path) -> Results:
    """Read a sweep: the finished runs of its last plan, and its speeds."""
    path = folder / "sweep.json"
    if not path.exists():
        records = read_all(folder)
        if not records:
            fail(
                BenchError, str(folder), "no sweep", "a folder that `regard bench` wrote", "name it"
            )
        return Results(tuple(records), len(records))
    said = read_json(path, SWEEP)
    with reading(path, SWEEP):
        left_out = tuple((a, b, c, d) for a, b, c, d in said["left_out"])
        plan = SweepPlan(
            tuple(TrainingRun(**run) for run in said["runs"]), left_out, said["budget"]
        )
        code = str(said["code"])
    speeds = folder / "speed.json"
    speed = read_speed(speeds)["rows"] if speeds.exists() else []
    with reading(path, SWEEP):  # a damaged plan may name what no disk can hold
        return gathered(plan, folder, code=code, speed=tuple(speed))


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Write results.json, and results, curves and speed as Parquet; return their paths.

    Tables of another sweep that are in the folder are moved to `older/` within it.
    """
    need("pyarrow", "bench", "writes Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    runs, curves = [], []
    for r in results.records:
        who = {key: r["run"][key] for key in ("layer", "task", "pattern", "seed", "dim")}
        plain = {k: v for k, v in r.items() if not isinstance(v, dict | list)}
        for test, said in r["tests"].items():
            runs.append({**who, "test": test, **said, **{f"run_{k}": v for k, v in plain.items()}})
        curves += [{**who, **point} for point in r["curve"]]
    written = [folder / "results.json"]
    found = {"of": results.origin, "records": list(results.records), "speed": list(results.speed)}
    if begins_as_ours(written[0]) and _origin_in(written[0]) != results.origin:
        set_aside(written[0])
    write_json(written[0], found, RESULTS)
    tables: list[tuple[str, Sequence[dict[str, Any]]]] = [
        ("results", runs), ("curves", curves), ("speed", results.speed)
    ]  # fmt: skip
    for name, rows in tables:
        if rows:
            path = folder / f"{name}.parquet"
            table, held = pa.Table.from_pylist(list(rows)), io.BytesIO()
            said = {"made_by": MADE_BY, "of": results.origin}
            pq.write_table(table.replace_schema_metadata(said), held)
            body = held.getvalue()
            if _is_our_table(path) and _said_in(path).get(b"of") != results.origin.encode():
                set_aside(path)
            written.append(write_bytes(path, body, may_replace=_is_our_table, error=BenchError))
    return written


def _is_our_table(path: Path) -> bool:
    """Return whether a Parquet file is marked as written by Regard."""
    return bool(_said_in(path).get(b"made_by") == MADE_BY.encode())


def _said_in(path: Path) -> dict[bytes, bytes]:
    """Return what a Parquet file says of itself; nothing where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return dict(pq.read_metadata(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return {}


def _origin_in(path: Path) -> str:
    """Return what sweep a file of results is of; nothing where it is damaged or of no sweep."""
    try:
        return str(read_json(path, RESULTS).get("of", ""))
    except BenchError:
        return ""
