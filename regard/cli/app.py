"""Build the command line from its verbs."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from regard.cli.naming import name_flags

# Modules with an `app` of several commands; heavy imports are inside the commands.
VERBS = ("papers", "bench", "spread")
# Modules with one `command`.
COMMANDS = ("see", "compare", "shrink", "steer", "calibrate")


def command() -> Any:
    """Build the command line with all of its verbs."""
    app = typer.Typer(
        name="regard",
        help="See, steer, shrink, spread and swap attention in any PyTorch model.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for verb in VERBS:
        app.add_typer(importlib.import_module(f"regard.cli.{verb}").app, name=verb)
    for name in COMMANDS:
        app.command(name)(importlib.import_module(f"regard.cli.{name}").command)
    return name_flags(typer.main.get_command(app))


def _version(asked: bool) -> None:
    if asked:
        from regard import __version__

        print(f"regard {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
