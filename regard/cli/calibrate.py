"""`regard calibrate`: let a policy find out about a model, and keep what it found in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.asking import at_least, numbers, read_text, writable_file
from regard.cli.completing import one_of_policies
from regard.cli.printing import bars, console

Name = Annotated[
    str,
    typer.Argument(
        help="A policy that learns of a model: duo_attention, ...", autocompletion=one_of_policies
    ),
]
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
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file of yours, or of another model.")
    ] = False,
) -> None:
    """Calibrate a policy on a model. A run that is broken off, or killed, goes on where it was."""
    from regard.cli.models import config_of, need_decoder, positions_of, text_model
    from regard.core.errors import RuleError, ValueRangeError, fail
    from regard.core.files import is_packed, refuse_to_replace
    from regard.policies import calibrate
    from regard.policies.calibration import CALIBRATION

    made = _policy(name, settings or [])
    if not hasattr(made, "learn"):
        fail(
            RuleError, "policy", repr(name), "one that learns of a model",
            "use it as it is: it needs no calibration",
        )  # fmt: skip
    path = writable_file("--to", Path(f"{name}.cal") if to is None else to)
    if path.exists() and not force and not is_packed(path, CALIBRATION):
        refuse_to_replace(path)
    text, sizes = None if file is None else read_text("--file", file), numbers("--length", length)
    at_least("--rows", rows, 1)
    otherwise = "calibrate it from Python: regard.policies.calibrate(model, policy, inputs, to=...)"
    config = config_of(model, revision)
    need_decoder(config, otherwise)
    positions = positions_of(config)
    if positions is not None and max(sizes) > positions:
        fail(
            ValueRangeError, "--length", max(sizes),
            f"at most {positions}, the positions that the model was made for", f"say {positions}",
        )  # fmt: skip
    loaded, tokenizer = text_model(model, revision, otherwise)
    shown = _inputs(made, tokenizer, text, rows, sizes)
    with bars("steps") as tell:
        calibrate(
            loaded, made, shown, to=path, overwrite=force,
            progress=lambda done, whole: tell(f"calibrating {name}", done, whole),
        )  # fmt: skip
    screen, named = console(), f" {model}" if model else ""
    screen.print(f"written: {path}", markup=False)
    screen.print(f"use it: regard shrink{named} --policy {name} --calibrate {path}", markup=False)


def _inputs(made: Any, tokenizer: Any, text: str | None, rows: int, sizes: list[int]) -> list[Any]:
    """What a policy of this kind learns from."""
    from regard.bench.shrunk_models import pass_keys, texts

    found: list[Any] = []
    for size in sizes:
        if getattr(made, "learns_from", "texts") == "answers":
            found += pass_keys(tokenizer, size, rows, text=text)
        else:
            found += texts(tokenizer, size, rows, text).split(1)
    return found


def _policy(name: str, words: list[str]) -> Any:
    """Build the policy; a setting of the wrong kind is told as one."""
    from regard.core.errors import RegardError, RuleError, fail
    from regard.policies import policy

    settings = _settings(words)
    usual = policy(name)  # a wrong name is no wrong setting
    for key, value in settings.items():
        held = getattr(usual, key, None)
        kinds = (int, float) if isinstance(held, float) else type(held)
        if isinstance(held, int | float | str) and not isinstance(value, kinds):
            fail(
                RuleError, "--set", f"{key}={value!r}", f"a {type(held).__name__}, as {held!r} is",
                f"say --set {key}={held!r}",
            )  # fmt: skip
    try:
        return policy(name, **settings)
    except RegardError:
        raise
    except (TypeError, ValueError) as error:
        fail(
            RuleError, "--set", f"{' '.join(words)} ({error})", f"values that {name} can take",
            "see the settings of the policy in docs/policies",
        )  # fmt: skip


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
