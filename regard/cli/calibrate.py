"""`regard calibrate`: calibrate a policy on a model, and save what it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.asking import at_least, numbers, read_text, writable_file
from regard.cli.completing import one_of_policies
from regard.cli.options import Force, Model, Revision
from regard.cli.printing import bars, console

Name = Annotated[
    str,
    typer.Argument(
        help="A policy that needs calibration: duo_attention, ...", autocompletion=one_of_policies
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the policy: --set steps=100")
]


def command(
    name: Name,
    model: Model = None,
    to: Annotated[Path | None, typer.Option(help="File to write; default: POLICY.cal.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text to calibrate on.")] = None,
    rows: Annotated[int, typer.Option(help="Texts of each length to calibrate on.")] = 16,
    length: Annotated[
        str, typer.Option(help="Tokens in each text; several lengths comma-separated.")
    ] = "512",
    settings: Settings = None,
    revision: Revision = None,
    force: Force = False,
) -> None:
    """Calibrate a policy on a model. An interrupted or killed run resumes where it was."""
    from regard.cli.models import config_of, need_decoder, text_model
    from regard.core.errors import RuleError, ValueRangeError, fail
    from regard.core.files import is_packed, refuse_to_replace
    from regard.models.longest_text import positions_of
    from regard.policies import calibrate
    from regard.policies.calibration import CALIBRATION

    made = _policy(name, settings or [])
    if not hasattr(made, "learn"):
        fail(
            RuleError, "policy", repr(name), "one that is calibrated on a model",
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
            f"at most {positions}, the positions that the model was made for",
            f"pass --length {positions}",
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
    """Return the inputs that a policy of this kind is calibrated on."""
    from regard.bench.shrunk_models import pass_keys, texts

    found: list[Any] = []
    for size in sizes:
        if getattr(made, "learns_from", "texts") == "answers":
            found += pass_keys(tokenizer, size, rows, text=text)
        else:
            found += texts(tokenizer, size, rows, text).split(1)
    return found


def _policy(name: str, words: list[str]) -> Any:
    """Build the policy; raise if a setting has the wrong type."""
    from regard.core.errors import RegardError, RuleError, fail
    from regard.policies import policy

    settings = _settings(words)
    usual = policy(name)  # raises on a wrong name, before settings are read
    for key, value in settings.items():
        held = getattr(usual, key, None)
        kinds = (int, float) if isinstance(held, float) else type(held)
        if isinstance(held, int | float | str) and not isinstance(value, kinds):
            fail(
                RuleError, "--set", f"{key}={value!r}", f"a {type(held).__name__}, as {held!r} is",
                f"pass --set {key}={held!r}",
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
    """Read name=value, with values as Python literals."""
    import ast

    from regard.core.errors import RuleError, fail

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            fail(RuleError, "--set", repr(word), "name=value", "pass --set steps=100")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
