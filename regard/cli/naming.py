"""Rewrite errors for the command line: name the flag that was typed, not the Python argument."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from regard.core.errors import RegardError, RuleError, ValueRangeError, fail, nearest

# Python argument -> command-line flags, where the names differ.
FLAGS = {
    "inputs": ("text", "file", "image"), "whats": ("what",), "policies": ("policy",),
    "name": ("layers", "name"), "task": ("tasks",), "pattern": ("patterns",),
    "executor": ("executors",), "policy": ("policies", "policy", "name"), "knobs": ("tasks",),
    "settings": ("set", "layers"),
}  # fmt: skip


def name_flags(command: Any) -> Any:
    """Make a command, and its subcommands, name flags in the errors they raise."""
    for below in getattr(command, "commands", {}).values():
        name_flags(below)
    run = command.invoke

    def invoke(ctx: Any) -> Any:
        for param in command.params:
            _need_sane(param, ctx.params.get(param.name))
        try:
            return run(ctx)
        except RegardError as error:
            raise by_flag(error, command.params, sys.argv[1:]) from error.__cause__

    command.invoke = invoke
    return command


def need_words(typed: Sequence[str]) -> None:
    """Raise where a word is empty, as a variable of the shell that is not set leaves it."""
    for place, word in enumerate(typed):
        name, sign, value = word.partition("=")
        if word.strip() and not (name.startswith("--") and sign and not value.strip()):
            continue
        before = typed[place - 1] if place and typed[place - 1].startswith("-") else ""
        flag = name if word.strip() else before or f"word {place + 1}"
        fail(ValueRangeError, flag, "an empty word", "a value", "pass one, or leave the flag out")


def _need_sane(param: Any, value: Any) -> None:
    """Raise where a number is none that a computer counts with, and words are none that it reads.

    A path may have bytes that are no UTF-8, and so may an argument, which can be a path.
    """
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, str) and param.param_type_name == "option":
            try:
                one.encode()
            except UnicodeEncodeError:
                flag = _typed(param, sys.argv[1:]) or _flag(param)
                fail(RuleError, flag, "bytes that are no UTF-8", "words in UTF-8", "retype them")
        if (isinstance(one, int) and abs(one) >= 2**63) or (
            isinstance(one, float) and not math.isfinite(one)
        ):
            flag = _typed(param, sys.argv[1:]) or _flag(param)
            fail(ValueRangeError, flag, one, "a number of at most 64 bits", "pass a smaller one")


def by_flag(error: RegardError, params: Sequence[Any], typed: Sequence[str]) -> RegardError:
    """Return the error with the flag as it was typed in place of the argument.

    `params` are those of the command; an argument without a flag stays as it is.
    """
    name, rest = re.match(r"([\w-]*)(.*)", error.argument, re.S).groups()  # type: ignore[union-attr]
    wanted = [name.lstrip("-").replace("-", "_")]
    if not name.startswith("-"):
        wanted = [*FLAGS.get(name, ()), *wanted]
    known = {key: p for p in params for key in _names(p)}
    found = [known[x] for x in wanted if x in known]
    # What a subcommand has named already is upper-case, or its own flag.
    if not found or name.isupper():
        return error
    flags = [flag for p in found for flag in (_typed(p, typed),) if flag]
    flag = flags[0] if flags else _flag(found[0])
    return type(error)(flag + rest, error.got, error.expected, error.fix)


def _names(param: Any) -> list[str]:
    return [param.name, *(x.lstrip("-").replace("-", "_") for x in param.opts)]


def _flag(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.name).upper()
    return str(max(param.opts, key=len))


def _typed(param: Any, typed: Sequence[str]) -> str | None:
    """Return the option as the user typed it, or None."""
    if param.param_type_name == "argument":
        return None
    words = [word.partition("=")[0] for word in typed]
    return next((x for x in (*param.opts, *param.secondary_opts) if x in words), None)


def usage_error(error: Exception) -> str | None:
    """Return one sentence for an error of the command-line parser, None for any other error."""
    import typer

    kinds = [kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"]
    if isinstance(error, typer.Abort):
        return "regard: stopped"
    if not kinds or not isinstance(error, kinds[0]):
        return None
    ctx = getattr(error, "ctx", None)
    path = getattr(ctx, "command_path", "regard")
    said = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError" or not said:
        said = "no command"
    unknown = re.match(r"No such command '([^']*)'", said)
    if unknown and "ean" not in said and ctx is not None:
        near = nearest(unknown[1], ctx.command.commands, "")
        said = f"{said}: {near}" if near else said
    return f"{path}: {said}. Fix: `{path} --help` says what it takes"
