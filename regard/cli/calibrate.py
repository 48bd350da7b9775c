"""`regard calibrate`: let a policy find out about a model, and keep what it found in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.printing import bars, console

Name = Annotated[str, typer.Argument(help="A policy that learns of a model: duo_attention, ...")]
Model = Annotated[
    str | None,
    typer.Argument(help="A folder or a name on the hub; without one, the model that ships."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the policy: --set steps=100")
]


def command(
    name: Name,
    model: Model = None,
    to: Annotated[Path | None, typer.Option(help="The file; by default POLICY.cal.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text to learn from.")] = None,
    rows: Annotated[int, typer.Option(help="Texts to learn from, of each length.")] = 16,
    length: Annotated[str, typer.Option(help="Tokens of each; several lengths by commas.")] = "512",
    settings: Settings = None,
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
) -> None:
    """Calibrate a policy on a model. A run that is broken off, or killed, goes on where it was."""
    from regard.cli.texts import text_model
    from regard.core.errors import RuleError, fail
    from regard.policies import calibrate, policy

    made = policy(name, **_settings(settings or []))
    if not hasattr(made, "learn"):
        fail(
            RuleError, "policy", repr(name), "one that learns of a model",
            "use it as it is: it needs no calibration",
        )  # fmt: skip
    loaded, tokenizer = text_model(
        model, revision,
        "calibrate it from Python: regard.policies.calibrate(model, policy, inputs, to=...)",
    )  # fmt: skip
    shown = _inputs(made, tokenizer, file, rows, length)
    path = Path(f"{name}.cal") if to is None else to
    with bars("steps") as tell:
        calibrate(
            loaded, made, shown, to=path,
            progress=lambda done, whole: tell(f"calibrating {name}", done, whole),
        )  # fmt: skip
    screen, named = console(), f" {model}" if model else ""
    screen.print(f"written: {path}", markup=False)
    screen.print(f"use it: regard shrink{named} --policy {name} --calibrate {path}", markup=False)


def _inputs(made: Any, tokenizer: Any, file: Path | None, rows: int, length: str) -> list[Any]:
    """What a policy of this kind learns from."""
    from regard.bench.shrinking import pass_keys, texts
    from regard.core.errors import RuleError, ValueRangeError, fail

    sizes = [int(x) if x.isdigit() else 0 for x in length.replace(",", " ").split()]
    for named, x in (("--rows", rows), ("--length", min(sizes, default=0))):
        if x < 1:
            fail(ValueRangeError, named, x, "whole numbers from 1", "say --length 256,512")
    text = None
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(RuleError, "--file", f"{file} ({error})", "a file of text", "name one")
    found: list[Any] = []
    for size in sizes:
        if made.learns_from == "answers":
            found += pass_keys(tokenizer, size, rows, text=text)
        else:
            found += texts(tokenizer, size, rows, text).split(1)
    return found


def _settings(words: list[str]) -> dict[str, Any]:
    """Read name=value, with values as Python writes them."""
    import ast

    from regard.core.errors import RuleError, fail

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            fail(RuleError, "--set", repr(word), "name=value", "say --set steps=100")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
