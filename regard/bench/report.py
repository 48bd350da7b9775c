"""The report of a sweep: one HTML file that asks the network for nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
import html
import statistics
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from regard.bench.drawing import Axis, Chart, ranked, short
from regard.bench.findings import UNLEARNED, findings
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
from regard.views.overwrite import is_ours, sealed_page


def report(results: Results) -> str:
    """Write the report of a sweep as HTML.

    >>> "default-src 'none'" in report(Results((), 0))
    True
    """
    style = (files("regard.bench") / "report.css").read_text(encoding="utf-8")
    colors = "".join(f".c{i} {{ --c: {color}; }}\n" for i, color in enumerate(ROLE_COLORS))
    style += colors
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        _header(results), _short(results), _ranking(results), _scores(results),
        _curves(results), _costs(results), _tests(results), _patterns(results), _speeds(results),
        _left_out(results), _method(results),
    ]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(results.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def write_report(results: Results, path: str | Path) -> Path:
    """Write the report to a file; a report of Regard that is there is replaced, nothing else."""
    body = sealed_page(report(results))
    return write_bytes(path, body, may_replace=is_ours, error=BenchError)


def _header(results: Results) -> str:
    legend = "".join(
        f'<li><i class="s c{_color(results, name)}"></i>{_e(name)}</li>' for name in results.layers
    )
    facts = [f"{len(results.layers)} layers", f"{len(results.cells)} tasks",
             f"{len(results.records)} runs", results.budget]  # fmt: skip
    if results.records:
        machine = results.records[0]["machine"]
        facts += [f"{machine['device']}", machine["date"]]
    said = " · ".join(_e(x) for x in facts if x)
    top = f'<h1>{_e(results.title)}</h1><p class="q">{said}</p>'
    return f'<header>{top}<ul class="legend">{legend}</ul></header>'


def _short(results: Results) -> str:
    said = "".join(f"<li>{_e(x)}</li>" for x in findings(results))
    return _section("In short", f"<ul>{said}</ul>") if said else ""


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
    return _section("Ranking", f"<p class=q>{_e(note)}</p>{ranked(rows)}")


def _scores(results: Results) -> str:
    if not results.records:
        return ""
    head = ["layer", *results.cells, "parameters"]
    rows = []
    for name in _learners(results):
        cells = [_e(name)]
        for cell in results.cells:
            found = results.score(name, cell)
            cells.append(_cell(found, _chance(results, cell)))
        sizes = {r["parameters"] for r in results.records if r["run"]["layer"] == name}
        cells.append(" to ".join(f"{x:,}" for x in sorted({min(sizes), max(sizes)})))
        rows.append(cells)
    chances = ["<i>chance</i>", *(f"{100 * _chance(results, c):.1f}%" for c in results.cells), ""]
    return _section("Scores by task", _table(head, [*rows, chances]))


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
        charts.append(_figure(cell, chart))
    return _section("Learning curves", _grid(charts)) if charts else ""


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
        charts.append(_figure(cell, chart))
    return _section("Accuracy against cost", _grid(charts)) if charts else ""


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
            rows.append([_e(layer), *said])
        tables.append(f"<h3>{_e(cell)}</h3>" + _table(["layer", *names], rows))
    note = "<p class=q>The first column is the task as it was trained on.</p>"
    return _section("Other lengths and depths", note + "".join(tables)) if tables else ""


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
                 else f'<span class="q" title="{_e(reasons.get((name, p), ""))}">cannot</span>'
                 if (name, p) in reasons else "–" for p in patterns]  # fmt: skip
        rows.append([_e(name), *cells])
    note = (
        "Compositional index: the mean z-score over the tasks of a pattern that some layer "
        "learned, of the layers that did all of them; 0 is the average layer here, and the "
        "numbers mean nothing outside this table."
    )
    head = ["layer", *(PATTERNS[p] for p in patterns)]
    return _section("By pattern of attention", f"<p class=q>{note}</p>{_table(head, rows)}")


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
            charts.append(_figure(f"{what}: {title}", chart))
    head = ["layer", "what", "longest", "seconds there", "bytes there", "time exponent",
            "memory exponent", "faster than mha from"]  # fmt: skip
    lines = []
    for fit in exponents(rows):
        lines.append([
            _e(fit["who"]), _e(fit["what"]), f"{fit['longest']:,}", short(fit["seconds"]),
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
    return _section("Speed and memory against length", f"<p class=q>{_e(note)}</p>"
                    + _grid(charts) + _table(head, lines))  # fmt: skip


def _left_out(results: Results) -> str:
    rows = [
        [_e(layer), _e(task), _e(PATTERNS.get(p, p)), _e(why)]
        for layer, task, p, why in results.left_out
    ]
    missing = results.planned - len(results.records)
    said = f"<p>{missing} of {results.planned} runs are not done.</p>" if missing else ""
    diverged = [r["key"] for r in results.records if r["diverged"]]
    said += (
        f"<p>Losses of these runs were not finite: {_e(', '.join(diverged))}.</p>"
        if diverged
        else ""
    )
    if rows:
        said += _table(["layer", "task", "pattern", "why"], rows)
    return _section("Left out", said) if said else ""


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
    return _section("How it was measured", f"<p>{_e(said)}</p><p class=q>{_e(shown)}</p>")


def _learners(results: Results) -> list[str]:
    return list(dict.fromkeys(r["run"]["layer"] for r in results.records))


def _chance(results: Results, cell: str) -> float:
    return float(next(r["chance"] for r in results.records if cell_of(r) == cell))


def _color(results: Results, name: str) -> int:
    return results.layers.index(name) % len(ROLE_COLORS)


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}"


def _figure(title: str, chart: Chart) -> str:
    return f"<figure><figcaption>{_e(title)}</figcaption>{chart.svg()}</figure>"


def _grid(items: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(items)}</div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_e(title)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_e(x)}</th>" for x in head)
    lines = "".join(f"<tr>{''.join(f'<td>{x}</td>' for x in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)
