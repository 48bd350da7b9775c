"""The report of a sweep: one HTML file without network requests and scripts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.bench.drawing import Axis, Chart, ranked, short
from regard.bench.findings import UNLEARNED, findings
from regard.bench.page_parts import document, figure, grid, header, plain, section, table
from regard.bench.records import BenchError
from regard.bench.results import Results, cell_of
from regard.bench.speed import Measure, exponents, pays_from
from regard.bench.statistics import (
    MeanInterval,
    above_chance,
    common,
    compositional_index,
    ranking,
)
from regard.core.files import write_bytes
from regard.tasks import PATTERNS
from regard.views.colors import ROLE_COLORS
from regard.views.overwrite import make_room, may_replace, sealed_page


def report(results: Results) -> str:
    """Write the report of a sweep as HTML.

    >>> "default-src 'none'" in report(Results((), 0))
    True
    """
    parts = [
        _header(results), _short(results), _ranking(results), _scores(results),
        _curves(results), _costs(results), _tests(results), _patterns(results), _speeds(results),
        _left_out(results), _method(results),
    ]  # fmt: skip
    return document(results.title, parts)


def write_report(results: Results, path: str | Path) -> Path:
    """Write the report to a file; one of the same sweep that is there is replaced.

    A report of another sweep is moved to `older/` beside it; anything else is refused.
    """
    path, origin = Path(path), results.origin
    make_room(path, origin, BenchError)
    body = sealed_page(report(results), origin)
    return write_bytes(path, body, may_replace=may_replace(origin, BenchError), error=BenchError)


def _header(results: Results) -> str:
    facts = [f"{len(results.layers)} layers", f"{len(results.cells)} tasks",
             f"{len(results.records)} runs", results.budget]  # fmt: skip
    if results.records:
        machine = results.records[0]["machine"]
        facts += [f"{machine['device']}", machine["date"]]
    return header(results.title, facts, results.layers)


def _short(results: Results) -> str:
    said = "".join(f"<li>{plain(x)}</li>" for x in findings(results))
    return section("In short", f"<ul>{said}</ul>") if said else ""


def _ranking(results: Results) -> str:
    scores, errors = results.scores()
    found = ranking(scores, errors)
    if not found:
        return ""
    rows = [(name, x.mean, x.low, x.high, _color(results, name)) for name, x in found]
    shared = common(scores)
    many = max((len(v) for by in scores.values() for v in by.values()), default=1) > 1
    of = "seeds within tasks" if many else "the test rows of one seed, which says nothing of others"
    note = (
        f"Mean over {len(shared)} tasks that every layer has done, where 0% is chance and 100% "
        "perfect. "
        f"Bars are 95% intervals by the bootstrap over {of}."
    )
    return section("Ranking", f"<p class=q>{plain(note)}</p>{ranked(rows)}")


def _scores(results: Results) -> str:
    if not results.records:
        return ""
    head = ["layer", *results.cells, "parameters"]
    rows = []
    for name in _learners(results):
        cells = [plain(name)]
        for cell in results.cells:
            found = results.score(name, cell)
            cells.append(_cell(found, _chance(results, cell)))
        sizes = {r["parameters"] for r in results.records if r["run"]["layer"] == name}
        cells.append(" to ".join(f"{x:,}" for x in sorted({min(sizes), max(sizes)})))
        rows.append(cells)
    chances = ["<i>chance</i>", *(f"{100 * _chance(results, c):.1f}%" for c in results.cells), ""]
    return section("Scores by task", table(head, [*rows, chances]))


def _cell(found: MeanInterval | None, chance: float) -> str:
    if found is None:
        return "–"
    level = min(max(round(10 * above_chance(found.mean, chance)), 0), 10)
    half = (found.high - found.low) / 2
    return (
        f'<span class="h h{level}">{100 * found.mean:.1f}% <small>±{100 * half:.1f}</small></span>'
    )


def _curves(results: Results) -> str:
    charts = []
    for cell in results.cells:
        mine = [r for r in results.records if cell_of(r) == cell]
        x = Axis.around([p["seconds"] for r in mine for p in r["curve"]], "seconds of training")
        chart = Chart(Axis(0, x.high, x.title), Axis(0, 1, "score", share=True), title=cell)
        chart.across(_chance(results, cell), f"chance: {100 * _chance(results, cell):.1f}%")
        for name in _learners(results):
            runs = results.of(name, cell)
            if runs:
                _one_curve(chart, runs, name, _color(results, name))
        charts.append(figure(cell, chart))
    return section("Learning curves", grid(charts)) if charts else ""


def _one_curve(chart: Chart, runs: Sequence[dict[str, Any]], name: str, color: int) -> None:
    """The mean over seeds at each share of the budget, in the band from the least to the most."""
    points = min(len(r["curve"]) for r in runs)
    mean, band = [], []
    for i in range(points):
        at = [r["curve"][i] for r in runs]
        scores = [p["score"] or 0.0 for p in at]
        x = statistics.mean(p["seconds"] for p in at)
        mean.append((x, statistics.mean(scores)))
        band.append((x, min(scores), max(scores)))
    if len(runs) > 1:
        chart.band(band, color)
    chart.line(mean, color, name)


def _costs(results: Results) -> str:
    charts = []
    for cell in results.cells:
        mine = [r for r in results.records if cell_of(r) == cell]
        x = Axis.around(
            [r["flops"] or 1 for r in mine], "FLOPs of training, by the counter", log=True
        )
        x = Axis(x.low / 1.3, x.high * 1.3, x.title, log=True)
        chart = Chart(x, Axis(0, 1, "score", share=True), title=cell)
        for r in mine:
            label = (
                f"{r['run']['layer']}: {100 * (r['score'] or 0):.1f}% after {r['steps']:,} "
                f"steps, {r['seconds']:.0f} s, {r['flops']:.2g} FLOPs"
            )
            chart.point(r["flops"] or 1, r["score"] or 0, _color(results, r["run"]["layer"]), label)
        charts.append(figure(cell, chart))
    return section("Accuracy against cost", grid(charts)) if charts else ""


def _tests(results: Results) -> str:
    tables = []
    for cell in results.cells:
        names: dict[str, None] = {}
        for r in results.records:
            if cell_of(r) == cell:
                names |= dict.fromkeys(r["tests"])
        if len(names) < 2:
            continue
        rows = []
        for layer in _learners(results):
            said = (_cell(results.score(layer, cell, t), _chance(results, cell)) for t in names)
            rows.append([plain(layer), *said])
        tables.append(f"<h3>{plain(cell)}</h3>" + table(["layer", *names], rows))
    note = "<p class=q>The first column is the task as it was trained on.</p>"
    return section("Other lengths and depths", note + "".join(tables)) if tables else ""


def _patterns(results: Results) -> str:
    """CAB's table: for each pattern the compositional index of those that did all of its tasks."""
    patterns = [p for p in PATTERNS if any(r["run"]["pattern"] == p for r in results.records)]
    if not patterns:
        return ""
    index: dict[str, dict[str, float]] = {}
    for p in patterns:
        cells = [c for c in results.cells if c.endswith(f"({p})")]
        able = [n for n in _learners(results) if all(results.of(n, c) for c in cells)]
        by_task = {}
        for c in cells:
            means = {n: results.score(n, c) for n in able}
            known = {n: x.mean for n, x in means.items() if x is not None}
            # Where nobody learned anything, z-scores would be of noise.
            if max(known.values(), default=0) > _chance(results, c) + UNLEARNED:
                by_task[c] = {n: [x] for n, x in known.items()}
        index[p] = compositional_index(by_task) if len(able) > 1 else {}
    reasons = {(of, p): why for of, _, p, why in results.left_out}
    rows = []
    for name in _learners(results):
        cells = [f"{index[p][name]:+.2f}" if name in index[p]
                 else f'<span class="q" title="{plain(reasons.get((name, p), ""))}">cannot</span>'
                 if (name, p) in reasons else "–" for p in patterns]  # fmt: skip
        rows.append([plain(name), *cells])
    note = (
        "Compositional index: the mean z-score over the tasks of a pattern that some layer "
        "learned, of the layers that did all of them; 0 is the average layer here, and the "
        "numbers mean nothing outside this table."
    )
    head = ["layer", *(PATTERNS[p] for p in patterns)]
    return section("By pattern of attention", f"<p class=q>{note}</p>{table(head, rows)}")


def _speeds(results: Results) -> str:
    rows = [Measure(**r) for r in results.speed]
    if not rows:
        return ""
    charts = []
    for what in dict.fromkeys(r.what for r in rows):
        mine = [r for r in rows if r.what == what]
        x = Axis.around([r.n for r in mine], "tokens", log=True, whole=True)
        for title in ("seconds", "bytes"):
            y = Axis.around([max(getattr(r, title), 1e-9) for r in mine], title, log=True)
            chart = Chart(
                x, Axis(y.low / 1.2, y.high * 1.2, title, log=True), title=f"{what}, {title}"
            )
            for who in dict.fromkeys(r.who for r in mine):
                line = [(r.n, getattr(r, title)) for r in mine if r.who == who]
                chart.line(line, _color(results, who), who)
            charts.append(figure(f"{what}: {title}", chart))
    head = ["layer", "what", "longest", "seconds there", "bytes there", "time exponent",
            "memory exponent", "faster than mha from"]  # fmt: skip
    lines = []
    for fit in exponents(rows):
        lines.append([
            plain(fit["who"]), plain(fit["what"]), f"{fit['longest']:,}", short(fit["seconds"]),
            short(fit["bytes"]),
            _number(fit["time exponent"]), _number(fit["memory exponent"]),
            pays_from(rows, fit["who"], fit["what"]),
        ])  # fmt: skip
    note = (
        "Bytes are those of the largest tensor on a CPU, and the peak on a GPU; of decoding, what "
        "the memory keeps, and seconds a token. Exponents are slopes over the four longest "
        "lengths. "
        "“Faster than mha from” is the shortest length from which on a layer was faster at every "
        "length measured; where it was slower at the longest, CAB's efficiency length: where the "
        "fitted time falls below that of mha for good."
    )
    return section("Speed and memory against length", f"<p class=q>{plain(note)}</p>"
                    + grid(charts) + table(head, lines))  # fmt: skip


def _left_out(results: Results) -> str:
    rows = [
        [plain(layer), plain(task), plain(PATTERNS.get(p, p)), plain(why)]
        for layer, task, p, why in results.left_out
    ]
    missing = results.planned - len(results.records)
    said = f"<p>{missing} of {results.planned} runs are not done.</p>" if missing else ""
    diverged = [r["key"] for r in results.records if r["diverged"]]
    said += (
        f"<p>Losses of these runs were not finite: {plain(', '.join(diverged))}.</p>"
        if diverged
        else ""
    )
    if rows:
        said += table(["layer", "task", "pattern", "why"], rows)
    return section("Left out", said) if said else ""


def _method(results: Results) -> str:
    if not results.records:
        return ""
    run = results.records[0]["run"]
    machine = results.records[0]["machine"]
    shown = ", ".join(f"{k} {v}" for k, v in machine.items())
    said = (
        f"Every layer stands in the same backbone ({run['depth']} blocks, {run['heads']} heads, "
        f"width {run['dim']}, {run['positions']} positions, a gated map after each), "
        f"trained by AdamW (rate {run['rate']:g}, up for a twentieth of the budget, down over its "
        f"last third) on batches of {run['batch']} rows, which are the same rows in the same order "
        "for every layer. Scores are of 512 rows that were never trained on. "
        f"Budget: {results.budget}. A setting that suits one layer may not suit another, and a "
        "small budget ranks how fast layers learn."
    )
    return section("How it was measured", f"<p>{plain(said)}</p><p class=q>{plain(shown)}</p>")


def _learners(results: Results) -> list[str]:
    return list(dict.fromkeys(r["run"]["layer"] for r in results.records))


def _chance(results: Results, cell: str) -> float:
    return float(next(r["chance"] for r in results.records if cell_of(r) == cell))


def _color(results: Results, name: str) -> int:
    return results.layers.index(name) % len(ROLE_COLORS)


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}"
