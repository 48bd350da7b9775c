"""`regard shrink`: measure what a model can still do when it keeps fewer keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.asking import at_least, budgets, listed, writable_folder
from regard.cli.completing import one_of_measures, one_of_policies
from regard.cli.options import AsJson, Force, ListThem, Model, Revision
from regard.cli.printing import console, print_json, print_rows, print_table

Policies = Annotated[
    str,
    typer.Option(
        "--policy",
        help="Policies, comma-separated: snapkv,h2o,streaming",
        autocompletion=one_of_policies,
    ),
]
Keeps = Annotated[
    str, typer.Option("--keep", help="Budgets, comma-separated: 25% of the keys, 256tok, 4MiB.")
]
Asked = Annotated[
    str,
    typer.Option(
        "--eval", help="What to measure: needle, recall, bits (per byte).",
        autocompletion=one_of_measures,
    ),
]  # fmt: skip


def command(
    model: Model = None,
    policies: Policies = "streaming,snapkv,ada_kv",
    keep: Keeps = "25%",
    asked: Asked = "needle,bits",
    length: Annotated[int, typer.Option(help="Tokens in a prompt.")] = 1024,
    draws: Annotated[int, typer.Option(help="Prompts per depth.")] = 4,
    calibrate: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the picture.")] = Path(
        "shrunk"
    ),
    revision: Revision = None,
    report: Annotated[
        str, typer.Option(help="'page' also writes the table and its pictures as one HTML page.")
    ] = "",
    force: Force = False,
    list_them: ListThem = False,
    as_json: AsJson = False,
) -> None:
    """Measure policies at budgets: a table, and a picture of quality against memory.

    An interrupted run resumes: what OUT already holds is not measured again.
    """
    from regard.policies.registry import known, policy

    if list_them:
        kinds = {kind.name: kind for kind in known().values()}
        head = ("policy", "what", "in a sentence")
        lines = [(n, k.what, (k.__doc__ or "").strip().splitlines()[0]) for n, k in kinds.items()]
        return print_rows(head, lines, as_json)
    from regard.bench.shrunk_cells import as_fields, recommended, rows
    from regard.bench.shrunk_models import BROKE, Setting, curves, fit_positions, need_measures
    from regard.bench.shrunk_page import NOTES, write_shrunk_page
    from regard.bench.shrunk_picture import picture
    from regard.cli.models import config_of, need_decoder, text_model
    from regard.core.errors import RuleError, fail, need
    from regard.models.longest_text import positions_of
    from regard.views.overwrite import need_replaceable

    # Check what needs no weights before loading them.
    need("matplotlib", "see", "draws curves")
    names, measures = listed("--policy", policies), listed("--eval", asked)
    need_measures(measures)
    if report not in ("", "page"):
        fail(RuleError, "--report", repr(report), "'page'", "leave it out for the table alone")
    keeps = budgets("--keep", keep)
    at_least("--draws", draws, 1)
    setting = Setting(length=length, draws=draws)
    for name in names:
        policy(name)
    served = _served(calibrate, names)
    fit_positions(setting, None, measures)
    otherwise = "measure it from Python: regard.shrink(model, ...).report(ids)"
    config = config_of(model, revision)
    need_decoder(config, otherwise)
    fit_positions(setting, positions_of(config), measures)
    writable_folder("--out", out)
    key = f"{(model or 'demo').replace('/', '--')}-{length}-{draws}-{'+'.join(measures)}.json"
    origin = hashlib.sha256(key.encode()).hexdigest()[:16]
    drawing, paper = out / "quality-memory.png", out / "shrunk.html"
    if not force:
        need_replaceable([drawing, paper] if report else [drawing], origin)
    loaded, tokenizer = text_model(model, revision, otherwise)

    def made(name: str) -> Any:
        return _calibrated(name, loaded, calibrate) if name in served else name

    cells = []
    for cell in curves(
        loaded, tokenizer, [made(n) for n in names], keeps, measures, setting, out / key
    ):
        cells.append(cell)
        if not as_json:
            took = "refused" if cell.refused else f"{cell.seconds:.1f} s"
            typer.echo(f"  {cell.label}: {took}", err=True)
    drawn = picture(cells, drawing, origin, overwrite=force)
    advice = recommended(cells)
    said = {"cells": [as_fields(c) for c in cells], "advice": advice, "picture": str(drawn)}
    if report:
        facts = [f"prompts of {length:,} tokens", f"{draws} for each depth"]
        title = f"{model or 'the demo model'}, shrunk"
        page = write_shrunk_page(cells, measures, title, facts, paper, origin, overwrite=force)
        said["page"] = str(page)
    if as_json:
        print_json(said)
    else:
        _print_cells(*rows(cells, measures), NOTES)
        for line in (advice, *(f"{x}: {said[x]}" for x in ("picture", "page") if x in said)):
            console().print(line, markup=False)
    if any(c.refused.startswith(BROKE) for c in cells):
        raise typer.Exit(1)
    if all(c.refused for c in cells[1:]):
        raise typer.Exit(2)
    return None


def _print_cells(head: list[str], lines: list[list[str]], notes: str) -> None:
    """Print numbers as a table, then a line of advice for each cell."""
    print_table(head[:-1], [line[:-1] for line in lines])
    for line in lines:
        label = f"{line[0]} at {line[1]}" if line[1] else line[0]
        console().print(f"  {label}: {line[-1]}", markup=False)
    console().print(f"\n{notes}\n", style="dim", markup=False)


def _served(calibrate: Path | None, names: list[str]) -> set[str]:
    """Return the policies that a calibration file is for; raise if there are none."""
    from regard.core.errors import RegardError, RuleError, fail
    from regard.policies.calibration import serves
    from regard.policies.registry import policy

    if calibrate is None:
        return set()
    try:
        found = {name for name in names if serves(calibrate, policy(name))}
    except RegardError as error:
        raise type(error)("--calibrate", error.got, error.expected, error.fix) from None
    if not found:
        fail(
            RuleError, "--calibrate", f"{calibrate}, which is for none of {', '.join(names)}",
            "a calibration of one of the policies", "name its policy with --policy",
        )  # fmt: skip
    return found


def _calibrated(name: str, model: Any, calibrate: Path | None) -> Any:
    """Build a policy with its calibration, a new one each time."""
    from regard.policies.calibration import load_calibration
    from regard.policies.registry import policy

    def make() -> Any:
        one = policy(name)
        load_calibration([one], model, calibrate)
        return one

    make()  # fail now if the file is of another model
    return make
