"""The shell: `regard VERB ...`. Each verb is one module of this folder; this one only composes."""

from __future__ import annotations

import importlib
import sys

from regard.core.errors import RegardError, need

# A module for each verb, with its `app`; they import what is heavy inside their commands.
VERBS = ("papers", "bench")
# And one whose whole module is one command.
COMMANDS = ("see", "shrink", "calibrate")


def main() -> None:
    """Run the command line; an error that Regard raises is one line, and exit code 2."""
    try:
        for package in ("typer", "rich"):
            need(package, "see", "draws the command line")
        import typer

        app = typer.Typer(
            name="regard",
            help="See, steer, shrink, spread and swap attention in any PyTorch model.",
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            add_completion=False,
        )
        for verb in VERBS:
            app.add_typer(importlib.import_module(f"regard.cli.{verb}").app, name=verb)
        for command in COMMANDS:
            app.command(command)(importlib.import_module(f"regard.cli.{command}").command)
        app()
    except RegardError as error:
        print(f"regard: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        sys.exit(141)
