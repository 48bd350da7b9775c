"""`regard shrink`: what a model still can do when it keeps less."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regard.cli.printing import print_json, print_table

Model = Annotated[
    str | None,
    typer.Argument(help="A folder or a name on the hub; without one, the model that ships."),
]
Policies = Annotated[
    str, typer.Option("--policy", help="Policies, by commas: snapkv,h2o,streaming")
]
Keeps = Annotated[str, typer.Option("--keep", help="Budgets, by commas: shares, or tokens.")]
Asked = Annotated[str, typer.Option("--eval", help="What to measure: needle, recall, ppl.")]


def command(
    model: Model = None,
    policies: Policies = "streaming,snapkv,ada_kv",
    keep: Keeps = "0.25",
    asked: Asked = "needle,ppl",
    length: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 1024,
    draws: Annotated[int, typer.Option(help="Prompts for each depth.")] = 4,
    calibrate: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    out: Annotated[Path, typer.Option(help="Where numbers and picture go.")] = Path("shrunk"),
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the policies, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cells as JSON.")] = False,
) -> None:
    """Shrink a model by policies at budgets: a table, and a picture of quality against memory.

    Measuring can be broken off: what OUT already holds is not measured again.
    """
    from regard.core.errors import RuleError, fail
    from regard.policies.registry import known, policy

    if list_them:
        kinds = {kind.name: kind for kind in known().values()}
        print_table(
            ("policy", "what", "in a sentence"),
            [(n, k.what, (k.__doc__ or "").strip().splitlines()[0]) for n, k in kinds.items()],
        )  # fmt: skip
        return
    from dataclasses import asdict

    from regard.bench.shrinking import MEASURES, Setting, curves, picture
    from regard.cli.texts import text_model
    from regard.policies.calibration import load_calibration, serves

    names = [x for x in policies.replace(",", " ").split() if x]
    measures = asked.replace(",", " ").split()
    for one in measures:
        if one not in MEASURES:
            fail(RuleError, "--eval", repr(one), f"some of {', '.join(MEASURES)}", "name these")
    budgets = [_budget(x) for x in keep.replace(",", " ").split()]
    for name in names:
        policy(name)  # a wrong name is told before a model is loaded
    loaded, tokenizer = text_model(
        model, revision, "measure it from Python: regard.shrink(model, ...).report(ids)"
    )

    def made(name: str) -> object:
        if calibrate is None or not serves(calibrate, policy(name)):
            return name

        def make() -> object:
            one = policy(name)
            load_calibration([one], loaded, calibrate)
            return one

        return make

    setting = Setting(length=length, draws=draws)
    key = f"{(model or 'demo').replace('/', '--')}-{length}-{draws}-{'+'.join(measures)}.json"
    cells = []
    for cell in curves(
        loaded, tokenizer, [made(n) for n in names], budgets, measures, setting, out / key
    ):
        cells.append(cell)
        if not as_json:
            typer.echo(f"  {cell.policy} {cell.keep or ''}: {cell.seconds:.1f} s", err=True)
    drawn = picture(cells, out / "quality-memory.png")
    if as_json:
        print_json({"cells": [asdict(c) for c in cells], "picture": str(drawn)})
        return
    head = ("policy", "keep", *measures, "bytes of full", "FLOPs of full")
    field = {"ppl": "bits"}

    def told(x: float | None, percent: bool = True) -> str:
        return "-" if x is None else f"{x:.1%}" if percent else f"{x:.3f}"

    print_table(head, [
        (c.policy, "" if c.keep is None else c.keep,
         *(told(getattr(c, field.get(m, m)), m != "ppl") for m in measures),
         told(c.bytes), told(c.flops))
        for c in cells
    ])  # fmt: skip
    typer.echo(f"ppl: bits per byte. Drawn in {drawn}")


def _budget(word: str) -> float | int:
    from regard.core.errors import RuleError, fail

    try:
        return float(word) if "." in word else int(word)
    except ValueError:
        return fail(
            RuleError,
            "--keep",
            repr(word),
            "shares such as 0.25, or tokens such as 256",
            "pass --keep 0.1,0.25",
        )
