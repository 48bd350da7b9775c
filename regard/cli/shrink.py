"""`regard shrink`: what a model still can do when it keeps less."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.asking import at_least, budgets, listed, writable_folder
from regard.cli.completing import one_of_measures, one_of_policies
from regard.cli.printing import console, print_json, print_table

Model = Annotated[
    str | None,
    typer.Argument(help="A folder or a name on the hub; without one, the model that ships."),
]
Policies = Annotated[
    str,
    typer.Option(
        "--policy", help="Policies, by commas: snapkv,h2o,streaming", autocompletion=one_of_policies
    ),
]
Keeps = Annotated[
    str, typer.Option("--keep", help="Budgets, by commas: shares 25%, tokens 256tok, bytes 4MiB.")
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
    length: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 1024,
    draws: Annotated[int, typer.Option(help="Prompts for each depth.")] = 4,
    calibrate: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    out: Annotated[Path, typer.Option(help="Where numbers and picture go.")] = Path("shrunk"),
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
    report: Annotated[
        str, typer.Option(help="'page' writes the table and its pictures as one HTML page too.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files of yours, or of another model.")
    ] = False,
    list_them: Annotated[bool, typer.Option("--list", help="List the policies, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cells as JSON.")] = False,
) -> None:
    """Shrink a model by policies at budgets: a table, and a picture of quality against memory.

    Measuring can be broken off: what OUT already holds is not measured again.
    """
    from regard.policies.registry import known, policy

    if list_them:
        kinds = {kind.name: kind for kind in known().values()}
        head = ("policy", "what", "in a sentence")
        lines = [(n, k.what, (k.__doc__ or "").strip().splitlines()[0]) for n, k in kinds.items()]
        if as_json:
            print_json([dict(zip(head, line, strict=True)) for line in lines])
        else:
            print_table(head, lines)
        return
    from regard.bench.shrunk_cells import as_fields, recommended, rows
    from regard.bench.shrunk_models import BROKE, Setting, curves, fit_positions, need_measures
    from regard.bench.shrunk_page import NOTES, write_shrunk_page
    from regard.bench.shrunk_picture import picture
    from regard.cli.models import config_of, need_decoder, positions_of, text_model
    from regard.core.errors import RuleError, fail, need
    from regard.views.overwrite import need_replaceable

    # Everything that can be told without the weights is told before they are loaded.
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


def _print_cells(head: list[str], lines: list[list[str]], notes: str) -> None:
    """Print numbers as a table, and under it what they come to, a line for each cell."""
    print_table(head[:-1], [line[:-1] for line in lines])
    for line in lines:
        label = f"{line[0]} at {line[1]}" if line[1] else line[0]
        console().print(f"  {label}: {line[-1]}", markup=False)
    console().print(f"\n{notes}\n", style="dim", markup=False)


def _served(calibrate: Path | None, names: list[str]) -> set[str]:
    """Policies that a calibration file is for; without any, it is an error to name it."""
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
    """Build a policy with its calibration, anew each time."""
    from regard.policies.calibration import load_calibration
    from regard.policies.registry import policy

    def make() -> Any:
        one = policy(name)
        load_calibration([one], model, calibrate)
        return one

    make()  # a file of another model is told before anything is measured
    return make
